import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from foretoken.cli.app import app
from foretoken.core.errors import ForetokenError, ModelError, RequestError
from foretoken.files import writing
from foretoken.speculators.formats import load_speculator
from foretoken.speculators.mlp import MLPSpeculator
from foretoken.training import checkpoint, trainer
from foretoken.training.kinds import Shape
from foretoken.training.shards import Generating
from foretoken.training.trainer import Settings, Training, scaled_settings

SMALL = Settings(steps=6, own_steps=8, batch=128, judge_every=2, generating=Generating(prompt=16, length=128))
SHAPE = Shape("mlp-speculator", 2, 8)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(trainer, "SHARD", 6)
    monkeypatch.setattr(trainer, "JUDGED", 2)


def train(base, stream, folder, settings=SMALL, shape=SHAPE, **more):
    training = Training(shape, settings, base, stream, folder / "out", folder / "work", **more)
    training.run()
    return training


@pytest.mark.parametrize("kind", ["mlp-speculator", "blockwise", "medusa"])
def test_what_is_saved_loads_and_learning_lowers_the_loss(base, stream, tmp_path, kind):
    settings = Settings(steps=30, own_steps=10, batch=256, judge_every=10, generating=SMALL.generating)
    moments = []
    training = train(base, stream, tmp_path, settings, Shape(kind, 2, 8), show=moments.append)
    assert [moment.step for moment in moments] == list(range(1, 41))
    assert sum(moments[-1].losses) < sum(moments[0].losses)
    assert training.best == max(line["accepted_length"] for line in training.history) >= 1
    module = load_speculator(tmp_path / "out", base.width, base.vocab_size, base.head)
    assert module.num_heads == 2


def test_an_mlp_speculator_ends_in_its_published_tensors_and_loses_nothing_on_the_way(base, stream, tmp_path):
    training = Training(SHAPE, SMALL, base, stream, tmp_path / "out", tmp_path / "work")
    factored = training.module
    states, ids = torch.randn(1, 9, base.width), torch.randint(0, base.vocab_size, (1, 12))
    before = list(factored.head_logits(states, ids))
    training._free()
    assert type(training.module) is MLPSpeculator
    for one, other in zip(before, training.module.head_logits(states, ids), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    training.run()  # from its start: a factored one is freed on the way, and one that is free already stays so
    assert "emb.0.weight" in checkpoint.load(tmp_path / "out" / "work" / "checkpoint.pt")["module"]


def test_a_head_is_told_what_the_base_expects_of_its_token(base, stream, tmp_path, monkeypatch):
    """Heads that say the base's own probabilities of that token have the least loss there is, their entropy."""
    ids = torch.from_numpy(stream.windows(2, trainer.SEGMENT + SHAPE.heads + 1, [0]))
    with torch.no_grad():
        logprobs = base.model(ids).logits.log_softmax(-1)  # row t is of the token after it
    # Head i reads row t and guesses token t + 2 + i, of which row t + 1 + i tells.
    own = [logprobs[:, 1 + i : 1 + i + trainer.SEGMENT] for i in range(SHAPE.heads)]
    training = Training(SHAPE, SMALL, base, stream, tmp_path / "out", tmp_path / "work")
    monkeypatch.setattr(training.module, "head_logits", lambda states, tokens: iter(own))
    losses = training._losses(base.states(ids)[:, :-1], ids)
    entropies = [-(said.exp() * said).sum(-1).mean().item() for said in own]
    assert [loss.item() for loss in losses] == pytest.approx(entropies, rel=1e-6)


def test_the_base_is_not_changed(base, stream, tmp_path):
    before = {name: weight.clone() for name, weight in base.model.state_dict().items()}
    train(base, stream, tmp_path)
    assert all(torch.equal(weight, before[name]) for name, weight in base.model.state_dict().items())


def test_parts_of_a_step_change_no_gradient(base, stream, tmp_path):
    whole = train(base, stream, tmp_path / "a")
    parts = train(base, stream, tmp_path / "b", replace(SMALL, accumulate=2))
    for one, other in zip(whole.history, parts.history, strict=True):
        assert one["losses"] == pytest.approx(other["losses"], abs=1e-3)
    with pytest.raises(RequestError, match="too few for 3 parts"):
        train(base, stream, tmp_path / "c", replace(SMALL, accumulate=3))
    with pytest.raises(RequestError, match="no multiple"):
        replace(SMALL, batch=100)


def test_a_step_over_a_large_vocabulary_is_computed_in_parts_that_fit():
    settings = Settings(1, 1, 32768)
    assert settings.parts(16, 4, 4096) == 1
    parts = settings.parts(512, 4, 128_256)
    assert 512 * 64 / parts * 128_256 * 4 * 14 <= 4e9 < 512 * 64 / (parts - 1) * 128_256 * 4 * 14
    assert settings.parts(2, 64, 10_000_000) == 2  # a segment is the smallest part


SCRIPT = """
import json, os, signal, sys
from pathlib import Path
from foretoken.memory.fingerprint import fingerprint
from foretoken.tokenizing import batch_encoder, load_tokenizer
from foretoken.training import trainer
from foretoken.training.base import FrozenBase
from foretoken.training.kinds import Shape
from foretoken.training.processes import joined
from foretoken.training.shards import Generating
from foretoken.training.tokens import TokenStream
trainer.SHARD, trainer.JUDGED = 6, 2
base, text, folder, killed_at = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
tokenizer = load_tokenizer("tiny")
settings = trainer.Settings(6, 8, int(sys.argv[5]), judge_every=2, generating=Generating(prompt=16, length=128))
with joined() as processes:
    for turn in range(2):
        if processes.is_main == (turn == 0):
            stream = TokenStream(folder, [text], batch_encoder(tokenizer), fingerprint(tokenizer), 0)
        processes.wait()
    training = trainer.Training(
        Shape("mlp-speculator", 2, 8), settings, FrozenBase(base, "float32"), stream,
        folder / "out", folder / "work", processes=processes,
        show=lambda moment: moment.step == killed_at and os.kill(os.getpid(), signal.SIGKILL),
    )
    training.run()
    if processes.is_main:
        (folder / "history.json").write_text(json.dumps([processes.count, training.history]))
"""


@pytest.mark.parametrize("killed_at", [5, 13])
def test_a_killed_training_ends_with_the_same_weights(base, base_folder, stream, text, tmp_path, killed_at):
    torn = tmp_path / "torn"
    command = [sys.executable, "-c", SCRIPT, str(base_folder), str(text), str(torn), str(killed_at), "128"]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    kept = checkpoint.load(torn / "out" / "work" / "checkpoint.pt")
    assert kept is not None and kept["step"] == killed_at - 1
    train(base, stream, torn)
    train(base, stream, tmp_path / "whole")
    ours, theirs = (load_file(tmp_path / name / "out" / "model.safetensors") for name in ("torn", "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    states = [checkpoint.load(tmp_path / name / "out" / "work" / "checkpoint.pt") for name in ("torn", "whole")]
    assert all(torch.equal(weights, states[1]["module"][name]) for name, weights in states[0]["module"].items())
    assert states[0]["history"] == states[1]["history"]


def test_two_processes_learn_what_one_does(base, base_folder, stream, text, tmp_path):
    """Also where one has more of a step's three segments than the other."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    subprocess.run([*launch, str(base_folder), str(text), str(tmp_path), "0", "192"], check=True, capture_output=True)
    count, two = json.loads((tmp_path / "history.json").read_text())
    assert count == 2
    one = train(base, stream, tmp_path / "one", replace(SMALL, batch=192)).history
    for ours, theirs in zip(one, two, strict=True):
        assert ours["losses"] == pytest.approx(theirs["losses"], abs=2e-3)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(base, stream, tmp_path, monkeypatch):
    def lose(self, states, ids):
        losses = real(self, states, ids)
        return [losses[0], losses[1] * float("nan")] if self._step == 5 else losses

    real = Training._losses
    monkeypatch.setattr(Training, "_losses", lose)
    with pytest.raises(ModelError, match=r"loss of head 2 is not a number in step 6 .*checkpoint.pt"):
        train(base, stream, tmp_path)
    kept = checkpoint.load(tmp_path / "out" / "work" / "checkpoint.pt")
    assert kept is not None and kept["step"] == 4
    assert all(bool(weight.isfinite().all()) for weight in kept["module"].values())


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"step": 1})

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ForetokenError, match="No space left on device"):
        checkpoint.save(path, {"step": 2})
    assert checkpoint.load(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_damaged_checkpoint_and_that_of_another_training_are_refused(base, stream, tmp_path):
    train(base, stream, tmp_path)
    with pytest.raises(RequestError, match="another training"):
        train(base, stream, tmp_path, shape=Shape("mlp-speculator", 2, 4))
    path = tmp_path / "out" / "work" / "checkpoint.pt"
    with writing(path) as file:
        file.write(b"nonsense")
    with pytest.raises(ForetokenError, match="damaged"):
        train(base, stream, tmp_path)


def test_defaults_are_the_published_ones_for_a_large_base_and_fewer_for_a_small_one():
    assert scaled_settings(7_000_000_000) == (15000, 6000, 32768)
    steps, own_steps, rows = scaled_settings(5_000_000)
    assert 500 < steps < 2000 and own_steps < steps and 512 <= rows <= 4096 and rows % 64 == 0


def test_the_command_trains_and_writes_a_page(base_folder, text, tmp_path):
    options = ["--base", str(base_folder), "--data", str(text), "--output", str(tmp_path / "out"), "--heads", "2"]
    options += ["--steps", "2", "--own-steps", "2", "--batch", "64", "--judge-every", "2", "--device", "cpu"]
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["train", "medusa", *options, "--html", str(page)])
    assert done.exit_code == 0, done.output
    assert "accepted length" in done.output
    assert "Training of medusa" in page.read_text() and "head 2" in page.read_text()
    assert Path(tmp_path / "out" / "config.json").exists()
