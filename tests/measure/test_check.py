"""What ``check`` measures, at which contexts, and what it says where logits are not numbers."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from foretoken import ForetokenError, LanguageModel
from foretoken.engines.toy import ToyEngine
from foretoken.engines.transformers.target import TransformersTarget
from foretoken.measure.check import CONTEXTS, check
from helpers.commanding import call
from helpers.shapes import tiny_model
from helpers.tokenizing import character_tokenizer


@pytest.fixture
def lm():
    return LanguageModel(tiny_model("llama"), character_tokenizer(), "none", background=None)


def test_answers_begin_where_attention_rounds_otherwise(lm):
    report = check(lm, 5)
    assert report.contexts == [(length, length + 4) for length in CONTEXTS]
    assert min(CONTEXTS) < 100 < sorted(CONTEXTS)[1] and max(CONTEXTS) > 200


def test_a_short_context_is_filled(lm):
    lm.engine.max_length = 40
    assert check(lm, 8).contexts == [(16, 23), (32, 39)]


def test_prompts_that_are_given_are_measured_as_they_are(lm):
    assert check(lm, 3, ["abc", "abcdefg"]).contexts == [(3, 5), (7, 9)]


def test_what_a_wide_forward_moves_is_measured(lm, monkeypatch):
    """By how much is known here: by a quarter, and only where a forward has several rows."""
    forward = TransformersTarget._forward

    def moved(self, input_ids, *args, **extra):
        logits, states = forward(self, input_ids, *args, **extra)
        return logits + 0.25 if 1 < input_ids.shape[1] < 16 else logits, states

    monkeypatch.setattr(TransformersTarget, "_forward", moved)
    report = check(lm, 12)
    assert report.noise == pytest.approx(0.25, abs=0.01) and report.identical and report.holds


def test_an_engine_without_logits_is_refused():
    with pytest.raises(ForetokenError, match="The toy engine shows no logits"):
        check(LanguageModel(ToyEngine(), background=None), 3)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_logits_that_are_not_numbers_are_no_agreement(lm, monkeypatch, wrong):
    """First in every forward, then only in those of several rows."""
    forward = TransformersTarget._forward
    for widest in (1, 2):

        def damaged(self, input_ids, *args, widest=widest, **extra):
            logits, states = forward(self, input_ids, *args, **extra)
            if widest <= input_ids.shape[1] < 16:
                logits = logits.index_fill(1, torch.tensor([5]), wrong)
            return logits, states

        monkeypatch.setattr(TransformersTarget, "_forward", damaged)
        report = check(lm, 6)
        assert report.not_numbers > 0 and not report.identical and not report.holds
        json.dumps(report.as_dict(), allow_nan=False)


def test_logits_that_leave_a_token_out_are_numbers(lm, monkeypatch):
    forward = TransformersTarget._forward

    def masked(self, input_ids, *args, **extra):
        logits, states = forward(self, input_ids, *args, **extra)
        return logits.index_fill(1, torch.tensor([5]), -float("inf")), states

    monkeypatch.setattr(TransformersTarget, "_forward", masked)
    report = check(lm, 6)
    assert report.holds and report.identical and report.noise is not None and report.noise < 1


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_command_says_that_logits_are_not_numbers(monkeypatch, capsys, tmp_path, model_folder, dtype):
    weights = load_file(model_folder / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    words = ("check", tmp_path, "--dtype", dtype, "--max-new-tokens", 3)

    def refuse(number: str) -> None:
        raise AssertionError(f"{number} is no JSON")

    status, out, err = call(monkeypatch, capsys, *words, "--json")
    (report,) = json.loads(out, parse_constant=refuse)
    assert status == 1 and (report["identical"], report["noise"], report["not_numbers"]) == (False, None, 3)
    assert f"In {dtype} the logits are not numbers in 3 of 3 answers" in err
    status, out, err = call(monkeypatch, capsys, *words)
    assert status == 1 and "0 of 3" in out and "not numbers" in err
