"""Sampled text under drafting follows the target's own distribution in vLLM, with our correction and only with it."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed in this environment")

with warnings.catch_warnings(action="ignore"):
    import torch
    import vllm.v1.sample.rejection_sampler as sampler
    from scipy import stats
    from torch import Tensor
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from vllm import SamplingParams

from foretoken.hosts.vllm import sampling_fix
from helpers.vllm_engine import TINY, engine

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]  # vLLM and torch give many

VLLMS_OWN = sampler.expand_batch_to_tokens  # before an engine's drafter corrects it for the whole process
PROMPT = "def area(width, height):\n    return width * he"  # its next token is certain, and the one after it is not
TEMPERATURE, TOP_P = 1.2, 0.9
SAMPLES = 1200
CERTAIN = 1e-6  # a distribution with a smaller p-value is another one
CONFIG = {"method": "custom_class", "model": f"{__name__}.Likeliest", "num_speculative_tokens": 2}


class Likeliest:
    """Drafts the same tokens for every row."""

    tokens: ClassVar[list[int]] = []

    def __init__(self, vllm_config: Any) -> None:
        pass

    def load_model(self, model: Any) -> None:
        pass

    def propose(self, sampled: list[list[int]], *_: Any, **__: Any) -> list[list[int]]:
        return [list(self.tokens) if new else [] for new in sampled]


class Exact:
    """The distribution that a token should have, by transformers' own forward."""

    def __init__(self) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
        self.prompt: list[int] = AutoTokenizer.from_pretrained(TINY)(PROMPT)["input_ids"]

    def after(self, *tokens: int) -> Tensor:
        """The probabilities [vocab] of the token after the prompt and some more."""
        with torch.inference_mode():
            logits = self.model(torch.tensor([[*self.prompt, *tokens]])).logits[0, -1].double()
        probs, order = (logits / TEMPERATURE).softmax(-1).sort(descending=True)
        probs[probs.cumsum(0) - probs >= TOP_P] = 0
        return torch.zeros_like(probs).scatter(0, order, probs / probs.sum())


@pytest.fixture(scope="module")
def exact():
    return Exact()


def p_value(tokens: Tensor, probs: Tensor) -> float:
    """How likely tokens that follow a distribution would fit it no better; 0 if one of them should never come."""
    counts, expected = torch.bincount(tokens, minlength=len(probs)).double(), probs * len(tokens)
    if counts[expected == 0].any():
        return 0.0
    order = expected.argsort(descending=True)
    num = max(2, int((expected >= 5).sum()))  # the others are taken together with the rarest of these
    groups = [
        torch.cat([values[order][: num - 1], values[order][num - 1 :].sum()[None]]) for values in (counts, expected)
    ]
    return float(stats.chisquare(*groups).pvalue)


def p_values(exact: Exact) -> list[float]:
    """Of the two tokens that were drafted, and of the one after them."""
    first = int(exact.after().argmax())
    second = int(exact.after(first).argmax())
    third = int(exact.after(first, second).argmax())
    Likeliest.tokens = [second, third]
    llm = engine(CONFIG, max_num_seqs=64)
    sampling_fix.correct_sampling()
    asked = [{"prompt_token_ids": exact.prompt}] * SAMPLES
    how = SamplingParams(temperature=TEMPERATURE, top_p=TOP_P, max_tokens=4, ignore_eos=True, detokenize=False)
    answers = torch.tensor([one.outputs[0].token_ids for one in llm.generate(asked, how, use_tqdm=False)])
    assert (answers[:, 0] == first).all(), "the prompt does not do what it is for"
    accepted = answers[answers[:, 1] == second]
    return [
        p_value(answers[:, 1], exact.after(first)),
        p_value(accepted[:, 2], exact.after(first, second)),
        p_value(accepted[accepted[:, 2] == third][:, 3], exact.after(first, second, third)),
    ]


def test_sampling_is_exact_with_the_correction_and_wrong_without(exact, monkeypatch, caplog):
    monkeypatch.setattr(sampler, "expand_batch_to_tokens", VLLMS_OWN)
    monkeypatch.setenv(sampling_fix.SWITCH, "0")
    assert min(p_values(exact)[:2]) < CERTAIN
    assert "sampled text is wrong" in caplog.text
    monkeypatch.delenv(sampling_fix.SWITCH)
    caplog.clear()
    assert min(p_values(exact)) > 1e-3
    assert sampling_fix.SAMPLER in caplog.text
    assert not sampling_fix.correct_sampling(), "what is right is left alone"


def test_drafted_tokens_get_the_settings_of_their_request():
    counts = torch.tensor([2, 3, 0, 1])
    got = sampling_fix.expand_batch_to_tokens(torch.tensor([0.0, 0.7, 9.0, 1.5]), counts.cumsum(0).int(), 6, 0, 1)
    assert got.tolist() == pytest.approx([1, 1, 0.7, 0.7, 0.7, 1.5])


def test_the_self_check_finds_what_reads_memory_or_rounds():
    right = sampling_fix.expand_batch_to_tokens
    assert sampling_fix.expands(right)
    assert not sampling_fix.expands(lambda x, ends, total, *_: x.new_empty(total))
    assert not sampling_fix.expands(lambda x, *rest: right(x.long(), *rest).to(x.dtype))
    assert not sampling_fix.expands(lambda x, ends, total, *_: right(x, ends, total))
