"""What a GGUF file says of a tokenizer, for those whose every setting llama.cpp honours.

llama.cpp knows pre-tokenizers by name alone: how text is split is not in the file. So a tokenizer is exported only
where its own description equals one of those that a name stands for, and refused otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from gguf import GGUFWriter, TokenType
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerBase

from foretoken.core.errors import ModelError

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
LLAMA_3 = {
    "type": "Split",
    "pattern": {
        "Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    },
    "behavior": "Isolated",
    "invert": False,
}
# llama.cpp's name of the steps that split a text, and whether it takes a whole word that is a token without merging.
PRE_TOKENIZERS: dict[str, tuple[list[dict[str, Any]], bool]] = {
    "gpt-2": ([BYTES], False),
    "smollm": ([DIGITS, BYTES], False),
    "llama-bpe": ([LLAMA_3, BYTES | {"use_regex": False}], True),
}
IN_NO_TEXT = {chr(byte) for byte in (0xC0, 0xC1, *range(0xF5, 0x100))}  # bytes that UTF-8 never has
END_JOBS = ("eos", "eot", "eom")  # llama.cpp ends an answer at each of these tokens


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as a GGUF file describes it.

    Args:
        pre: llama.cpp's name of the pre-tokenizer.
        tokens: The text of every token, one for each row of the model's embedding.
        types: Their ``gguf.TokenType``.
        merges: Pairs of tokens that become one, the first first.
        add_bos: Whether the token ``bos`` goes before every text.
        add_eos: Whether the token ``eos`` goes after every text.
        special: Tokens by the name of their job: "bos", "eos", "unk" and "pad", as far as there are any.
        templates: Chat templates by name; the usual one is called "default".
    """

    pre: str
    tokens: Sequence[str]
    types: Sequence[TokenType]
    merges: Sequence[tuple[str, str]]
    add_bos: bool
    add_eos: bool
    special: dict[str, int]
    templates: dict[str, str]

    def added(self) -> list[str]:
        """The tokens that are found in a text before anything else."""
        whole = (TokenType.CONTROL, TokenType.USER_DEFINED)
        return [token for token, kind in zip(self.tokens, self.types, strict=True) if kind in whole]

    def add_to(self, writer: GGUFWriter, ends: Sequence[int]) -> None:
        """Add it to a file.

        Args:
            writer: Of the file.
            ends: The tokens that end an answer, one to three.
        """
        writer.add_tokenizer_model("gpt2")  # as llama.cpp calls byte-level BPE
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges([" ".join(merge) for merge in self.merges])
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        jobs = {job: self.special[job] for job in ("bos", "unk", "pad") if job in self.special}
        usual_first = sorted(ends, key=lambda token: token != self.special.get("eos"))
        for job, token in [*jobs.items(), *zip(END_JOBS, usual_first, strict=False)]:
            getattr(writer, f"add_{job}_token_id")(token)
        if self.templates:
            writer.add_chat_template([{"name": name, "template": text} for name, text in self.templates.items()])


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, num_rows: int) -> Vocabulary:
    """Describe a tokenizer.

    Args:
        tokenizer: Any.
        num_rows: Rows of the model's embedding. Those that no token has are marked as unused.

    Raises:
        ForetokenError: If llama.cpp would make other tokens or another text, as far as the settings say.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ModelError(
            "The tokenizer has no tokenizer.json, which a GGUF file is made from: put it beside the model."
        )
    settings = json.loads(backend.to_str())
    for what in _unknown(settings):
        raise ModelError(f"The tokenizer cannot be written to a GGUF file, because llama.cpp {what}.")
    pre = _pre_tokenizer(settings)
    ids = backend.get_vocab(with_added_tokens=True)
    if max(ids.values()) >= num_rows:
        raise ModelError(f"The tokenizer has token {max(ids.values())}, and the model has {num_rows}: they do not fit.")
    tokens = [f"[PAD{i}]" for i in range(num_rows)]
    types = [TokenType.UNUSED] * num_rows
    for token, i in ids.items():
        tokens[i], types[i] = token, TokenType.NORMAL
    for token in settings["added_tokens"]:
        types[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    if len(set(tokens)) < num_rows:  # llama.cpp would end the process
        raise ModelError("The tokenizer has a token [PAD...] that stands for an unused one in GGUF files: rename it.")
    named = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    special = {name: int(token) for name, token in named.items() if token is not None}
    add_bos, add_eos = _adds(backend, special)
    templates = tokenizer.chat_template or {}
    return Vocabulary(
        pre=pre,
        tokens=tokens,
        types=types,
        merges=[(left, right) for left, right in settings["model"]["merges"]],
        add_bos=add_bos,
        add_eos=add_eos,
        special=special,
        templates={"default": templates} if isinstance(templates, str) else templates,
    )


def _unknown(settings: dict[str, Any]) -> Iterator[str]:
    """What of a tokenizer's settings llama.cpp does not honour, each as the end of a sentence."""
    model = settings["model"]
    if model["type"] != "BPE" or model["byte_fallback"] or model["dropout"]:
        yield "is told of byte-level BPE only here, and this tokenizer is none"
        return
    if settings["normalizer"] is not None:
        yield f"does not normalize text, as this tokenizer does ({settings['normalizer']['type']})"
    if (settings["decoder"] or {}).get("type") != "ByteLevel":
        yield "makes text of the bytes of tokens, and this tokenizer does not"
    if model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        yield "does not mark parts of words, as this tokenizer does"
    alphabet = set(ByteLevel.alphabet()) - IN_NO_TEXT
    if missing := len(alphabet - model["vocab"].keys()):
        yield f"needs a token for every byte, and this tokenizer lacks {missing}"
    for token in settings["added_tokens"]:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            yield f"takes no spaces away around a token, as this tokenizer does around {token['content']!r}"


def _pre_tokenizer(settings: dict[str, Any]) -> str:
    """llama.cpp's name of the pre-tokenizer.

    Raises:
        ForetokenError: If none is known.
    """
    steps = [settings["pre_tokenizer"] or {}]
    if steps[0].get("type") == "Sequence":
        steps = steps[0]["pretokenizers"]
    steps = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    found = (steps, settings["model"]["ignore_merges"])
    for name, known in PRE_TOKENIZERS.items():
        if known == found:
            return name
    raise ModelError(
        "The tokenizer splits text in a way that has no name in llama.cpp, as far as is known here: known are those of "
        "GPT-2, SmolLM and Llama 3."
    )


def _adds(backend: Tokenizer, special: dict[str, int]) -> tuple[bool, bool]:
    """Whether a tokenizer puts "bos" before a text, and "eos" after it.

    Raises:
        ForetokenError: If it adds anything else.
    """
    plain, full = (backend.encode("a", add_special_tokens=added).ids for added in (False, True))
    for add_bos, add_eos in product((False, True), repeat=2):
        before = [special.get("bos")] if add_bos else []
        if [*before, *plain, *([special.get("eos")] if add_eos else [])] == full:
            return add_bos, add_eos
    raise ModelError(f"The tokenizer makes tokens {full} of {plain}, and llama.cpp can add none but bos and eos.")
