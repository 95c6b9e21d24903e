"""The analysis of trained heads: a replay is accepted as a real run is, counts are those of the logits."""

from __future__ import annotations

import json

import pytest
import torch

from foretoken import DecodeStats, FixedBudget, ForetokenError, decode
from foretoken.drafters import Parts, SharedNgrams
from foretoken.engines.transformers.choice import Choice
from foretoken.measure.measured_model import MeasuredModel
from foretoken.measure.methods import METHODS
from foretoken.measure.prompts import Question
from foretoken.measure.run import SEED, Conditions
from foretoken.measure.speculator import ORACLE_OF_ALL, REPLAYED, HeadCounts, _replayed, analyse, count, record
from foretoken.speculators.formats import save_speculator
from foretoken.speculators.module import IndependentHeads
from helpers.commanding import call
from helpers.heads import random_speculator, torch_heads
from helpers.shapes import VOCAB, tiny_model
from helpers.tokenizing import character_tokenizer

PROMPT = Question("a", "any", [1, 5, 9, 1, 5])
SAMPLED = Conditions(0.9, 1, 40)


@pytest.mark.parametrize("kind", ["mlp", "blockwise"])
def test_a_replay_is_accepted_just_as_a_real_run_is(kind):
    model = tiny_model("llama")
    measured = MeasuredModel(model, asked_exact=False)
    target = measured.target(SAMPLED.temperature, SEED)
    heads = torch_heads(model, kind, target.choice)
    recording = record(target, PROMPT, SAMPLED, [])
    replayed = _replayed(recording, heads, measured)
    for name in REPLAYED:
        method = METHODS[name]
        assert method.recipe is not None and method.drafted is not None
        drafter = method.recipe.make(Parts(target, SharedNgrams, heads=lambda: heads))
        budget = FixedBudget(method.drafted)
        real = DecodeStats.of(decode(target, drafter, PROMPT.prompt, max_new_tokens=40, budget=budget))
        assert (real.steps, real.drafted, real.accepted) == (
            replayed[name].steps,
            replayed[name].drafted,
            replayed[name].accepted,
        )
    assert replayed["speculator"].steps < len(recording.tokens) - 1


def test_counts_are_those_of_the_logits():
    model = tiny_model("llama")
    module = random_speculator(model, "blockwise")
    assert isinstance(module, IndependentHeads)
    target = MeasuredModel(model, asked_exact=False).target(SAMPLED.temperature, SEED)
    recording = record(target, PROMPT, SAMPLED, [])
    counts = [HeadCounts() for _ in range(module.num_heads)]
    oracles = count(recording, torch_heads(model, "blockwise", Choice()), counts)
    tokens = torch.tensor(recording.tokens)
    with torch.inference_mode():
        logits = torch.stack([module.all(state) for state in recording.states[:-1]]).float()  # [places, heads, vocab]
    for head, one in enumerate(counts):
        said = logits[: len(tokens) - 1 - head, head]
        truth = tokens[1 + head :]
        assert one.positions == len(truth)
        rank = (said > said.gather(1, truth[:, None])).sum(1)
        assert one.ranks == [int((rank == k).sum()) for k in range(16)]
        probs = said.softmax(-1)
        assert one.entropy == pytest.approx(float(-(probs * probs.log()).sum()), rel=1e-3), "all tokens are candidates"
        before = logits[:, head - 1].argmax(-1) if head else tokens[:-1]
        assert one.repeated == int((logits[:, head].argmax(-1) == before).sum())
    assert VOCAB <= 64 and [one.steps for one in oracles] == sorted((one.steps for one in oracles), reverse=True)
    assert oracles[1].steps == -(-(len(tokens) - 1) // (1 + module.num_heads)), "it knows all tokens"


def test_no_drafter_beats_the_oracle_and_a_head_line_has_all(tmp_path):
    model = tiny_model("llama")
    save_speculator(random_speculator(model, "medusa"), tmp_path)
    measured = MeasuredModel(model, speculator=tmp_path)
    *nothing, found = analyse(measured, [PROMPT, Question("b", "other", [7, 8])], SAMPLED)
    assert nothing == [None, None] and found is not None
    lengths = {line["method"]: line["tokens_per_step"] for line in found.lengths if line["kind"] == "all"}
    assert max(lengths, key=lengths.__getitem__) == ORACLE_OF_ALL and set(REPLAYED) < set(lengths)
    assert found.answers == 2 and 1 <= found.rising <= len(found.heads)
    for line in found.heads:
        assert line["top"] == sorted(line["top"]) and 0 <= line["repeated"] <= 1
    with pytest.raises(ForetokenError, match="all of them loop"):
        list(analyse(measured, [], SAMPLED))


def test_the_command_writes_numbers_and_a_page(tmp_path, monkeypatch, capsys):
    pytest.importorskip("plotly")
    folder, prompts = tmp_path / "model", tmp_path / "prompts.jsonl"
    tiny_model("llama").save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    prompts.write_text(json.dumps({"id": "a", "kind": "<kind>", "prompt": "abc"}) + "\n")
    words = ["bench", "speculator", "--model", folder, "--prompts", prompts, "--background", "none"]
    words += ["--temperature", "0.9", "--max-new-tokens", "16", "--out", tmp_path / "n.json"]
    status, _, said = call(monkeypatch, capsys, *words)
    assert status == 2 and "There are no trained heads" in said
    save_speculator(random_speculator(tiny_model("llama"), "blockwise"), folder / "speculator")
    status, shown, said = call(monkeypatch, capsys, *words, "--html", tmp_path / "page.html")
    assert status == 0, said
    assert "refined-speculator-paths" in shown
    (found,) = json.loads((tmp_path / "n.json").read_text())["found"]
    assert len(found["heads"]) == 3 and found["answers"] == 1
    page = (tmp_path / "page.html").read_text()
    assert page.count("Plotly.newPlot(") == 4 and "&lt;kind&gt;" in page and "<kind>" not in page.split("</script>")[-1]
