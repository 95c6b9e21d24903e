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

FOUR: dict[str, Any] = LLAMA | {"num_hidden_layers": 4}
LINEAR: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "head_dim": 8,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MAMBA: dict[str, Any] = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1}
STATES: dict[str, Any] = SMALL | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}

# Models with a recurrent state, or the last inputs of convolutions, whose drafts are scored.
UNTYPED: Any = tf  # some configs take more than their signatures say
RECURRENT: dict[str, Any] = {
    "qwen3_next": lambda: tf.Qwen3NextConfig(**FOUR, **LINEAR, **EXPERTS, shared_expert_intermediate_size=32),
    "qwen3_5": lambda: tf.Qwen3_5TextConfig(**FOUR, **LINEAR),
    "granite_4": lambda: tf.GraniteMoeHybridConfig(
        **FOUR,
        **MAMBA,
        mamba_chunk_size=32,
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=64,
        layer_types=["mamba", "attention"] * 2,
    ),
    "falcon_h1": lambda: tf.FalconH1Config(**LLAMA, **MAMBA, mamba_d_ssm=64, mamba_chunk_size=32),
    "nemotron_h": lambda: UNTYPED.NemotronHConfig(
        **FOUR,
        hybrid_override_pattern="M*M-",
        mamba_num_heads=4,
        mamba_head_dim=16,
        ssm_state_size=16,
        n_groups=1,
        chunk_size=32,
        head_dim=8,
    ),
    "lfm2": lambda: tf.Lfm2Config(**FOUR, layer_types=["conv", "full_attention"] * 2),
    "bamba": lambda: tf.BambaConfig(**FOUR, **MAMBA, mamba_chunk_size=32, attn_layer_indices=[1]),
    "mamba_2": lambda: tf.Mamba2Config(**STATES, num_heads=4, head_dim=16, n_groups=1, chunk_size=32),
    "zamba_2": lambda: UNTYPED.Zamba2Config(
        **FOUR,
        mamba_d_state=16,
        mamba_ngroups=1,
        n_mamba_heads=4,
        mamba_headdim=16,
        chunk_size=32,
        num_mem_blocks=1,
        hybrid_layer_ids=[1, 3],
        layers_block_type=["mamba", "hybrid"] * 2,
        attention_head_dim=16,
    ),
    "olmo_hybrid": lambda: tf.OlmoHybridConfig(**FOUR),
    "kimi_linear": lambda: tf.KimiLinearConfig(
        **FOUR | {"num_key_value_heads": 4},
        layer_types=LINEAR["layer_types"],
        linear_head_dim=8,
        linear_num_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
    ),
}
# Those whose scan forgets the state: nothing is drafted.
ROW_BY_ROW: dict[str, Any] = {
    "jamba": lambda: tf.JambaConfig(
        **FOUR, mamba_d_state=8, use_mamba_kernels=False, num_experts=2, attn_layer_period=2, attn_layer_offset=1
    ),
    "mamba": lambda: tf.MambaConfig(**STATES),
    "falcon_mamba": lambda: tf.FalconMambaConfig(**STATES),
}
# Those that keep their state elsewhere than in a cache that transformers has for it.
REFUSED: dict[str, Any] = {
    "rwkv": lambda: tf.RwkvConfig(**SMALL, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32),
    "recurrent_gemma": lambda: tf.RecurrentGemmaConfig(**FOUR, lru_width=32, attention_window_size=32),
    "minimax": lambda: tf.MiniMaxConfig(**FOUR, head_dim=8, num_local_experts=2),
}
ALL = CONFIGS | RECURRENT | ROW_BY_ROW | REFUSED


@cache
def tiny_model(shape: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> tf.PreTrainedModel:
    """A random model whose greedy text wanders: every matrix scaled so that the layers outweigh the last token."""
    torch.manual_seed(0)
    config = ALL[shape]()
    if attention != "sdpa":  # which is what models take by themselves, where they have any attention
        config._attn_implementation = attention
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 2 / parameter.shape[1] ** 0.5)
    return model.to(dtype)
