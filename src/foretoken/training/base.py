"""The base model, which stays as it is: its states, its vocabulary and its own texts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache

from foretoken.core.errors import ModelError
from foretoken.engines.transformers.inputs import input_device
from foretoken.engines.transformers.loading import load_model


class FrozenBase:
    """A base model that is read and never changed.

    Args:
        name: Model folder, name on the hub, or "tiny".
        dtype: As ``foretoken.load`` takes it.
        device: Likewise.

    Raises:
        ForetokenError: If it cannot be loaded or has no output head.
    """

    def __init__(self, name: str, dtype: str = "auto", device: str | None = None) -> None:
        self.name = name
        self.model = load_model(name, dtype, device).eval().requires_grad_(False)
        head, embedding = self.model.get_output_embeddings(), self.model.get_input_embeddings()
        if not isinstance(head, nn.Linear) or not isinstance(embedding, nn.Embedding):
            raise ModelError(f"The model {name!r} has no plain embedding and output head to train a speculator on.")
        self.head, self.embedding = head, embedding
        self.vocab_size, self.width = head.weight.shape
        self.device = input_device(self.model)

    @property
    def num_parameters(self) -> int:
        return int(self.model.num_parameters())

    @torch.inference_mode()
    def states(self, ids: Tensor) -> Tensor:
        """What the output head reads in each row, [batch, length, width], for ``ids`` [batch, length]."""

        def keep(module: nn.Module, read: tuple[Tensor, ...]) -> None:
            raise _ReadError(read[0])

        hook = self.head.register_forward_pre_hook(keep)
        try:
            self.model(input_ids=ids.to(self.device), use_cache=False)
        except _ReadError as read:
            return read.states
        finally:
            hook.remove()
        raise ModelError(f"The forward of {self.name!r} does not call its output head.")

    def logprobs(self, states: Tensor) -> Tensor:
        """The log probabilities of the next token, float32 [..., vocab], by the output head alone."""
        bias = None if self.head.bias is None else self.head.bias.float()
        return functional.linear(states.float(), self.head.weight.float(), bias).log_softmax(-1)

    @torch.inference_mode()
    def generate(self, prompts: Tensor, length: int, temperature: float, top_k: int, seed: tuple[int, ...]) -> Tensor:
        """Prompts and what the base says after them, with no end: [batch, prompt + length].

        Args:
            prompts: int64 [batch, prompt].
            length: Tokens to generate.
            temperature: To sample with, above 0.
            top_k: Sample from so many tokens. 0 means from all.
            seed: Decides the texts.
        """
        # One stream of random numbers for each call, so that no text depends on those before it.
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        cache = DynamicCache(config=self.model.config)
        ids = prompts.to(self.device)
        rows = [ids]
        for _ in range(length):
            forward = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits = forward.logits[:, -1].float().cpu() / temperature
            best, tokens = logits.topk(min(top_k or logits.shape[-1], logits.shape[-1]))
            chosen = torch.multinomial(best.softmax(-1), 1, generator=generator)
            ids = tokens.gather(1, chosen).to(self.device)
            rows.append(ids)
        return torch.cat(rows, dim=1).cpu()


class _ReadError(Exception):
    """Ends a forward at the output head, whose logits nobody needs."""

    def __init__(self, states: Tensor) -> None:
        self.states = states
