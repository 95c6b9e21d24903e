"""Llama folders as people have them: random weights, and tokenizers of the kinds that llama.cpp knows."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from foretoken.export.same_tokens import texts

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # the heads together are wider than the model
    "max_position_embeddings": 256,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
LLAMA_3 = (  # as Llama 3's tokenizer.json has it
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<s>", "</s>", "<|user|>", "<pad>"]


@cache
def trained(pre: str) -> str:
    """A tokenizer.json whose tokens were learned from texts in many scripts, split as llama.cpp's ``pre`` does it."""
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre != "llama-bpe")
    first: dict[str, list[Any]] = {
        "gpt-2": [],
        "smollm": [pre_tokenizers.Digits(individual_digits=True)],
        "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA_3), "isolated")],
    }
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first[pre], by_bytes]) if first[pre] else by_bytes
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts(SPECIAL), trainer)
    if pre == "llama-bpe":
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer.to_str()


def llama_folder(folder: Path, pre: str = "gpt-2", unused: int = 12, **changes: Any) -> Path:
    """Write a random Llama and a tokenizer into a folder.

    Args:
        folder: Made if need be.
        pre: llama.cpp's name of how the tokenizer splits a text.
        unused: Rows of the embedding that have no token.
        **changes: Of the model's config.
    """
    tokenizer = Tokenizer.from_str(trained(pre))
    tokenizer.add_tokens(["<tool>"])  # found in a text first, and not special
    fast = tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template="{{ messages }}"
    )
    fast.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    ends = {"bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": 3}
    config = tf.LlamaConfig(**SHAPE | ends | {"vocab_size": len(fast) + unused} | changes)
    torch.manual_seed(0)
    model = tf.LlamaForCausalLM(config)
    model.generation_config.eos_token_id = ends["eos_token_id"]
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
