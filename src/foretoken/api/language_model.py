"""Text in, text out: ``foretoken.load("...").generate("...")``."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast, overload

import torch
from tqdm.auto import tqdm
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)

from foretoken.api.drafting import Situation
from foretoken.core.budget import AdaptiveBudget, Budget
from foretoken.core.contracts import Drafter, FinishReason, Step
from foretoken.core.decode import check_request, decode
from foretoken.core.errors import ForetokenError
from foretoken.core.numbers import real, whole
from foretoken.core.stats import DecodeStats
from foretoken.drafters import DEFAULT_DRAFTER, SharedNgrams, check_name
from foretoken.engines.transformers.detokenize import Detokenizer
from foretoken.engines.transformers.encoding import thread_encoder
from foretoken.engines.transformers.generation_config import check_generation_config
from foretoken.engines.transformers.loading import is_fault, load_model, load_tokenizer, reason
from foretoken.engines.transformers.request import Request, read_request, refuse_modes
from foretoken.engines.transformers.second_model import check_same_tokens, load_draft_model
from foretoken.engines.transformers.stop_strings import (
    StopStrings,
    config_stop_strings,
    read_stop_strings,
    without_stop_strings,
)
from foretoken.engines.transformers.target import TransformersTarget, context_length, input_device
from foretoken.memory.fingerprint import fingerprint
from foretoken.memory.history import History
from foretoken.memory.namespace import Namespace
from foretoken.memory.namespaces import Namespaces, check_namespace
from foretoken.texts import is_text

DEFAULT_NEW_TOKENS = 256  # where neither the caller nor the model's generation config says
DEFAULT_NAMESPACE = "default"

Messages = Sequence[Mapping[str, str]]
Prompt = str | Messages


class Options(TypedDict, total=False):
    """How to answer; what is left out follows the model's own generation config.

    Keys:
        max_new_tokens: The most tokens to add, at least 1.
        temperature: 0 for greedy; above 0 samples.
        top_k: Sample from the k most probable tokens; 0 for all.
        top_p: Sample from the most probable tokens that make up this probability, in (0, 1].
        min_p: Drop tokens less probable than this share of the best one, in [0, 1].
        repetition_penalty: Above 1 makes tokens of the text so far less likely; above 0.
        stop: Strings that end the answer, which keeps them, beside those of the generation config. It ends where one
            first stands in its text; a string that names a special token is found, too, though the text skips it.
        seed: Decides the text under sampling; drawn from torch's generator where left out.
        drafter: A name in ``foretoken.drafters.DRAFTERS``, "none", or a drafter.
        budget: How many tokens to draft; where left out just what pays, and seven with "anpd", "prompt-lookup" and a
            drafter of your own.
        references: Documents that the answer may quote or edit; "mixed" and "ngram" draft from them.
        namespace: Whose earlier answers to draft from, and where to remember this one; None to remember nothing.
        generation_config: Used instead of the model's own.
    """

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    stop: str | Sequence[str] | None
    seed: int
    drafter: str | Drafter | None
    budget: Budget | None
    references: Sequence[str]
    namespace: str | None
    generation_config: GenerationConfig


@dataclass(frozen=True)
class Result:
    """An answer.

    Args:
        text: The answer's text, without the prompt.
        tokens: Its token ids, the stop token with them.
        finish_reason: "stop" at a stop token or string, "length" at a limit, None where the caller stopped.
        stats: What it cost: steps, drafted, accepted, acceptance length, seconds.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None
    stats: DecodeStats


@dataclass(frozen=True)
class Chunk:
    """The text that one token completed, and whether the token was a drafted one that the target accepted."""

    text: str
    accepted: bool


class Stream:
    """An answer while it is written: iterate for chunks; ``result`` is what there is so far."""

    def __init__(self, steps: Iterator[Step], detokenizer: Detokenizer) -> None:
        self._stats = DecodeStats()
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._finish_reason: FinishReason | None = None
        self._chunks = self._read(steps, detokenizer)

    def __iter__(self) -> Iterator[Chunk]:
        return self._chunks

    @property
    def result(self) -> Result:
        return Result("".join(self._text), tuple(self._tokens), self._finish_reason, self._stats)

    def _read(self, steps: Iterator[Step], detokenizer: Detokenizer) -> Iterator[Chunk]:
        for step in steps:
            self._stats.add(step)
            for i, token in enumerate(step.tokens):
                self._tokens.append(token)
                yield from self._chunk(detokenizer.push(token), accepted=i < step.num_accepted)
            self._finish_reason = step.finish_reason
        yield from self._chunk(detokenizer.flush(), accepted=False)

    def _chunk(self, text: str, accepted: bool) -> Iterator[Chunk]:
        if text:
            self._text.append(text)
            yield Chunk(text, accepted)


class LanguageModel:
    """A transformers model and its tokenizer, with drafting.

    Args:
        model: A causal language model whose cache can rewind.
        tokenizer: Its tokenizer.
        drafter: The drafter used where a call names none.
        draft_model: A smaller model of the same tokens, for the drafter "draft-model".
        exit_layer: After how many layers the drafter "early-exit" leaves; a third of them where None.
        background: A corpus to draft from: "general", which comes with the package, the folder of a store that
            ``foretoken corpus build`` made, or None.
        history: Keeps answers between runs; None forgets them with this object.

    Raises:
        ForetokenError: If the model cannot be drafted for, the drafter is unknown, or the background corpus does not
            belong to this tokenizer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        drafter: str | Drafter | None = DEFAULT_DRAFTER,
        *,
        draft_model: PreTrainedModel | None = None,
        exit_layer: int | None = None,
        background: str | Path | None = "general",
        history: History | None = None,
    ) -> None:
        self.model, self.tokenizer, self.drafter = model.eval(), tokenizer, drafter
        self.draft_model, self.exit_layer = draft_model, exit_layer
        self.max_length = context_length(model)
        self.vocab_size = int(model.config.get_text_config(decoder=True).vocab_size)
        target = TransformersTarget(model)  # refuses what cannot rewind, before any prompt
        if draft_model is not None:
            check_same_tokens(draft_model, model, tokenizer, tokenizer)  # sizes alone may differ within a family
        self._situation(target, SharedNgrams).drafting(drafter)
        self.memories = Namespaces(
            thread_encoder(tokenizer), lambda: fingerprint(tokenizer), len(tokenizer), background, history
        )

    @property
    def budget(self) -> AdaptiveBudget:
        """What the default namespace has learned of costs and gains; every namespace has a budget of its own."""
        return self.memories.of(DEFAULT_NAMESPACE).budget

    @overload
    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Result: ...
    @overload
    def generate(self, prompt: list[str] | list[Messages], **options: Unpack[Options]) -> list[Result]: ...

    def generate(
        self, prompt: Prompt | list[str] | list[Messages], **options: Unpack[Options]
    ) -> Result | list[Result]:
        """Answer a prompt, a conversation, or a list of either, one after the other.

        A string is continued as it stands; messages, ``{"role": ..., "content": ...}``, go through the tokenizer's chat
        template. See ``Options`` for the keywords.

        Raises:
            ForetokenError: If the prompt is empty or too long, or an option is out of its range.
        """
        if isinstance(prompt, str) or len(prompt) == 0 or isinstance(prompt[0], Mapping):
            return self._answer(cast(Prompt, prompt), options)
        prompts = cast(list[Prompt], prompt)
        for one in prompts:
            self.encode(one)  # so that a bad one is found before the first is answered
        return [self._answer(one, options) for one in tqdm(prompts, desc="prompts", unit="prompt")]

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Stream:
        """Answer a prompt or a conversation chunk by chunk; the caller may stop at any.

        Raises:
            ForetokenError: As ``generate``, before the first chunk.
        """
        drafter = options.pop("drafter", self.drafter)
        references = options.pop("references", None) or ()
        namespace = options.pop("namespace", DEFAULT_NAMESPACE)
        check_namespace(namespace)
        budget = options.pop("budget", None)
        request = self.prepare(prompt, **options)
        check_request(len(request.prompt), request.max_new_tokens, self.max_length)
        target = TransformersTarget(
            self.model, request.choice, max_length=self.max_length, prefill_chunk=request.prefill_chunk
        )
        documents = self._encode_all(references)
        remembered = self.memories.of(namespace)
        situation = self._situation(target, lambda: remembered.ngrams, documents)
        drafter, budget = situation.drafting(drafter, budget)
        steps = decode(
            target,
            drafter,
            request.prompt,
            max_new_tokens=request.max_new_tokens,
            stop_tokens=request.stop_tokens,
            stop=request.stop,
            budget=budget,
        )
        return Stream(self._kept(steps, remembered), Detokenizer(self.tokenizer, request.prompt))

    def encode(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt or a conversation.

        Raises:
            ForetokenError: If it is empty, or a conversation meets a tokenizer without a chat template.
        """
        if not prompt:
            raise ForetokenError("The prompt is empty: give some text to continue.")
        if isinstance(prompt, str):
            if not is_text(prompt):
                raise ForetokenError("The prompt holds bytes that are no text: give it as UTF-8.")
            ids = self._tokens_of(prompt, add_special_tokens=True)
        else:
            if not self.tokenizer.chat_template:
                raise ForetokenError(
                    "This model's tokenizer has no chat template: give the prompt as one string instead of messages."
                )
            try:
                text = str(
                    self.tokenizer.apply_chat_template(
                        [dict(m) for m in prompt], tokenize=False, add_generation_prompt=True
                    )
                )
            except Exception as error:  # the template is a program that came with the model
                raise ForetokenError(f"The chat template does not take these messages: {reason(error)}") from error
            ids = self._tokens_of(text, add_special_tokens=False)
        if ids and max(ids) >= self.vocab_size:
            raise ForetokenError(
                f"The prompt has token {max(ids)}, and the model {self.vocab_size} tokens: its tokenizer is another's."
            )
        return ids

    def _tokens_of(self, text: str, add_special_tokens: bool) -> list[int]:
        try:  # not verbose: what is too long for the model is refused in other words, and a reference never is
            return list(self.tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"])
        except BaseException as error:
            if not is_fault(error):
                raise
            raise ForetokenError(f"A text cannot be made into tokens: {reason(error)}") from error

    def _situation(
        self, target: TransformersTarget, memory: Callable[[], SharedNgrams], references: Sequence[Sequence[int]] = ()
    ) -> Situation:
        return Situation(target, memory, references, self.draft_model, self.exit_layer)

    def _encode_all(self, documents: Sequence[str]) -> list[list[int]]:
        if isinstance(documents, str) or not isinstance(documents, Iterable):
            raise ForetokenError(f"references is {reprlib.repr(documents)}: give a list of documents.")
        for text in documents:
            if not is_text(text):
                raise ForetokenError(f"A reference is {reprlib.repr(text)}, which is no text: give each as a string.")
        return [self._tokens_of(text, add_special_tokens=False) for text in documents if text]

    def _kept(self, steps: Iterator[Step], namespace: Namespace) -> Iterator[Step]:
        """The steps as they come; the answer is kept once it is whole."""
        answer: list[int] = []
        try:
            for step in steps:
                answer += step.tokens
                if step.finish_reason is not None:
                    namespace.keep(answer)
                yield step
        finally:
            self.memories.settle(namespace.name)

    def _answer(self, prompt: Prompt, options: Options) -> Result:
        stream = self.stream(prompt, **options)
        for _ in stream:
            pass
        return stream.result

    def prepare(
        self,
        prompt: Prompt,
        *,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        generation_config: GenerationConfig | None = None,
        **rest: Any,
    ) -> Request:
        """The request that transformers' own preparation makes of a prompt and the options."""
        seed = None if seed is None else whole("seed", seed)
        config = generation_config or self.model.generation_config
        check_generation_config(config, self.vocab_size)
        stops = read_stop_strings("stop", stop) + config_stop_strings(config, self.model.generation_config)
        config = without_stop_strings(config)
        if generation_config is None:  # models are saved without it after training, and no text depends on it
            config.use_cache = True
        apply_options(config, **rest)
        prompt_ids = self.encode(prompt)
        check_request(len(prompt_ids), config.max_new_tokens or 1, self.max_length)

        def capture(
            model: PreTrainedModel,
            input_ids: torch.Tensor,
            logits_processor: LogitsProcessorList,
            stopping_criteria: StoppingCriteriaList,
            generation_config: GenerationConfig,
            **model_kwargs: Any,
        ) -> Request:
            request = read_request(input_ids, None, logits_processor, stopping_criteria, generation_config, seed)
            refuse_modes(model, generation_config)
            return request

        ids = torch.tensor([prompt_ids], device=input_device(self.model))
        try:
            request: Request = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=config, custom_generate=capture
            )
        except ForetokenError:
            raise
        except Exception as error:  # transformers' own checks of the config, and what is unfit for them, of any kind
            raise ForetokenError(f"The generation config cannot be used: {reason(error)}") from error
        if stops:
            request = replace(request, stop=StopStrings(stops, self.tokenizer, request.prompt, request.stop))
        return request


def load(
    model: str = "tiny",
    *,
    dtype: str = "auto",
    device: str | None = None,
    drafter: str | Drafter | None = DEFAULT_DRAFTER,
    draft_model: str | None = None,
    exit_layer: int | None = None,
    background: str | Path | None = "general",
    history: bool | str | Path | None = True,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """A language model, ready to draft for.

    Args:
        model: A folder in the Hugging Face layout, a name on the hub, or "tiny", the model that comes with the package.
        dtype: "float64", "float32", "bfloat16", "float16", or "auto" for what the weights are stored in.
        device: Where it runs, such as "cpu" or "cuda"; a GPU where None and there is one.
        drafter: A name in ``foretoken.drafters.DRAFTERS``, "none", or a drafter.
        draft_model: A smaller model of the same tokenizer, named as ``model``, for the drafter "draft-model".
        exit_layer: After how many layers the drafter "early-exit" leaves; a third of them where None.
        background: A corpus to draft from: "general", which comes with the package, the folder of a store that
            ``foretoken corpus build`` made, or None.
        history: The file that keeps answers between runs, so that later ones are drafted from them; True for
            ``foretoken.memory.history.default_path()``, False or None to forget them with the process. One that cannot
            be used gets a warning and is left alone.
        trust_remote_code: Whether code that comes with a model may run; read it first. Never asked for otherwise.

    Raises:
        ForetokenError: If there is no such model, it is no causal language model, it cannot rewind, or the background
            corpus or the draft model is not for it.
    """
    if isinstance(drafter, str):
        check_name(drafter)
    if not isinstance(history, bool | str | PathLike | None):
        raise ForetokenError(f"history is {history!r}: give the path of a file, True for the user's own, or False.")
    kept = None if history is None or history is False else History(None if history is True else Path(history))
    if kept is not None:
        kept.check()
    loaded = load_model(model, dtype, device, trust_remote_code)
    tokenizer = load_tokenizer(model, trust_remote_code)
    drafting = None
    if draft_model is not None:
        drafting = load_draft_model(draft_model, loaded, tokenizer, dtype, trust_remote_code)
    return LanguageModel(
        loaded,
        tokenizer,
        drafter,
        draft_model=drafting,
        exit_layer=exit_layer,
        background=background,
        history=kept,
    )


def apply_options(
    config: GenerationConfig,
    *,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
) -> None:
    """Write the options into a generation config.

    Raises:
        ForetokenError: If one is out of its range.
    """
    checks: list[tuple[str, Any, Callable[[str, Any], float], Callable[[Any], bool], str]] = [
        ("max_new_tokens", max_new_tokens, whole, lambda x: x >= 1, "ask for at least 1 token"),
        ("temperature", temperature, real, lambda x: x >= 0, "use 0 for greedy or a number above it"),
        ("top_k", top_k, whole, lambda x: x >= 0, "use 0 for all tokens or a number above it"),
        ("top_p", top_p, real, lambda x: 0 < x <= 1, "use a number above 0 and at most 1"),
        ("min_p", min_p, real, lambda x: 0 <= x <= 1, "use a number from 0 to 1"),
        ("repetition_penalty", repetition_penalty, real, lambda x: x > 0, "use a number above 0, 1 for none"),
    ]
    for name, given, number, holds, advice in checks:
        if given is not None:
            value = number(name, given)
            if not holds(value):
                raise ForetokenError(f"{name} is {given}: {advice}.")
            setattr(config, name, value)
    if max_new_tokens is None and config.max_new_tokens is None and config.max_length is None:
        config.max_new_tokens = DEFAULT_NEW_TOKENS
    if temperature == 0:
        config.do_sample = False
    elif any(value is not None for value in (temperature, top_k, top_p, min_p)):
        config.do_sample = True
    if not config.do_sample:
        config.temperature = config.top_k = config.top_p = config.min_p = None
