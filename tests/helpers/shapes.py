"""Tiny random models of the shapes people run, built in memory."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers as tf

VOCAB = 61
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,  # a tied model with random weights repeats its last token
}
LLAMA: dict[str, Any] = SMALL | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}

CONFIGS: dict[str, Any] = {
    "llama": lambda: tf.LlamaConfig(**LLAMA),
    "qwen2": lambda: tf.Qwen2Config(**LLAMA),
    "qwen3": lambda: tf.Qwen3Config(**LLAMA, head_dim=8),
    "mistral": lambda: tf.MistralConfig(**LLAMA, sliding_window=16),
    "gemma3": lambda: tf.Gemma3TextConfig(
        **LLAMA, head_dim=8, sliding_window=16, layer_types=["sliding_attention", "full_attention"]
    ),
    "gpt2": lambda: tf.GPT2Config(**SMALL, n_embd=32, n_layer=2, n_head=4, n_positions=512),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**LLAMA),
    "phi": lambda: tf.PhiConfig(**LLAMA),
}


@cache
def tiny_model(shape: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> tf.PreTrainedModel:
    """A random model whose greedy text wanders: every matrix scaled so that the layers outweigh the last token."""
    torch.manual_seed(0)
    config = CONFIGS[shape]()
    config._attn_implementation = attention
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 2 / parameter.shape[1] ** 0.5)
    return model.to(dtype)
