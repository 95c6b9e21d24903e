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
from foretoken.memory.fingerprint import fingerprint
from foretoken.speculators.formats import load_rescorer, load_speculator
from foretoken.speculators.mlp import MLPSpeculator
from foretoken.speculators.rescorer import RecurrentRescorer
from foretoken.tokenizing import batch_encoder, load_tokenizer
from foretoken.training import checkpoint, trainer
from foretoken.training.base import FrozenBase
from foretoken.training.kinds import Shape
from foretoken.training.processes import joined
from foretoken.training.shards import Generating
from foretoken.training.tokens import TokenStream
from foretoken.training.trainer import Settings, Training, scaled_settings
from helpers.ranks import meeting

SMALL = Settings(steps=6, own_steps=10, batch=128, judge_every=2, generating=Generating(prompt=16, length=128))
SHAPE = Shape("mlp-speculator", 2, 8)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(trainer, "SHARD", 6)
    monkeypatch.setattr(trainer, "JUDGED", 2)


def train(base, stream, folder, settings=SMALL, shape=SHAPE, **more):
    training = Training(shape, settings, base, stream, folder / "out", folder / "work", **more)
    training.run()
    return training


@pytest.mark.parametrize("kind", ["mlp-speculator", "blockwise", "medusa", "rescorer"])
def test_what_is_saved_loads_and_learning_lowers_the_loss(base, stream, tmp_path, kind):
    settings = Settings(steps=30, own_steps=10, batch=256, judge_every=10, generating=SMALL.generating)
    moments = []
    training = train(base, stream, tmp_path, settings, Shape(kind, 2, 8), show=moments.append)
    assert [moment.step for moment in moments] == list(range(1, 41))
    assert sum(moments[-1].losses) < sum(moments[0].losses)
    assert training.best == max(line["accepted_length"] for line in training.history) >= 1
    if kind == "rescorer":
        assert load_rescorer(tmp_path / "out", base.vocab_size).width == 8
    else:
        assert load_speculator(tmp_path / "out", base.width, base.vocab_size, base.head).num_heads == 2


@pytest.mark.parametrize("kind", ["mlp-speculator", "rescorer"])
def test_what_starts_factored_ends_in_its_published_tensors_and_loses_nothing(base, stream, tmp_path, kind):
    training = Training(replace(SHAPE, kind=kind), SMALL, base, stream, tmp_path / "out", tmp_path / "work")
    factored = training.module
    states, ids = torch.randn(1, 9, base.width), torch.randint(0, base.vocab_size, (1, 12))
    before = list(factored.head_logits(states, ids))
    training._free()
    assert type(training.module) is (MLPSpeculator if kind == "mlp-speculator" else RecurrentRescorer)
    for one, other in zip(before, training.module.head_logits(states, ids), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    training.run()  # from its start: a factored one is freed on the way, and one that is free already stays so
    kept = checkpoint.load(tmp_path / "out" / "work" / "checkpoint.pt")["module"]
    assert any(name.endswith("emb.0.weight") for name in kept)


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


def train_apart(base_folder, text, folder, settings=SMALL, environment=(), killed_at=0):
    """Train in a process of its own, which is killed at a step."""

    def show(moment):
        if moment.step == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    os.environ.update(environment)
    trainer.SHARD, trainer.JUDGED = 6, 2  # the fixture is not here
    tokenizer = load_tokenizer("tiny")
    with joined("cpu") as processes:
        for turn in range(2):
            if processes.is_main == (turn == 0):
                stream = TokenStream(folder, [text], batch_encoder(tokenizer), fingerprint(tokenizer), 0)
            processes.wait()
        base = FrozenBase(str(base_folder), "float32", "cpu")
        training = train(base, stream, folder, settings, processes=processes, show=show)
        if processes.is_main:
            (folder / "history.json").write_text(json.dumps([processes.count, training.history]))


def ended(process):
    process.join(600)
    return process.exitcode


def test_a_training_that_is_killed_twice_ends_with_the_same_weights(server, base, base_folder, stream, text, tmp_path):
    """Once among texts of the data, and once among the base's own, when its weights are no longer factored."""
    torn = tmp_path / "torn"
    for killed_at in (5, 15):
        process = server.Process(
            target=train_apart, args=(base_folder, text, torn), kwargs={"killed_at": killed_at}, daemon=True
        )
        process.start()
        assert ended(process) == -signal.SIGKILL
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


def test_two_processes_learn_what_one_does(server, base, base_folder, stream, text, tmp_path):
    """Also where one has more of a step's three segments than the other."""
    settings = replace(SMALL, batch=192)
    processes = [
        server.Process(target=train_apart, args=(base_folder, text, tmp_path, settings, environment), daemon=True)
        for environment in meeting(2)
    ]
    for process in processes:
        process.start()
    assert [ended(process) for process in processes] == [0, 0]
    count, two = json.loads((tmp_path / "history.json").read_text())
    assert count == 2
    one = train(base, stream, tmp_path / "one", settings).history
    for ours, theirs in zip(one, two, strict=True):
        assert ours["losses"] == pytest.approx(theirs["losses"], abs=2e-3)
    states = [checkpoint.load(folder / "out" / "work" / "checkpoint.pt") for folder in (tmp_path / "one", tmp_path)]
    for name, weight in states[0]["module"].items():
        torch.testing.assert_close(states[1]["module"][name], weight, atol=1e-5, rtol=0.0)


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


def words_of_the_command(base_folder, text, folder):
    options = ["--base", str(base_folder), "--data", str(text), "--output", str(folder / "out"), "--heads", "2"]
    options += ["--steps", "2", "--own-steps", "2", "--batch", "64", "--judge-every", "2", "--device", "cpu"]
    return ["train", "medusa", *options, "--html", str(folder / "page.html")]


def test_the_command_trains_and_writes_a_page(base_folder, text, tmp_path):
    done = CliRunner().invoke(app, words_of_the_command(base_folder, text, tmp_path))
    assert done.exit_code == 0, done.output
    assert "accepted length" in done.output
    page = (tmp_path / "page.html").read_text()
    assert "Training of medusa" in page and "head 2" in page
    assert Path(tmp_path / "out" / "config.json").exists()


@pytest.mark.slow
def test_torchrun_starts_the_command(base_folder, text, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "foretoken"]
    words = words_of_the_command(base_folder, text, tmp_path)
    words[words.index("64")] = "128"  # a segment for each
    done = subprocess.run([*launch, *words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("on held-out texts of the base") == 1, "the first process alone says how it ended"
    assert Path(tmp_path / "out" / "config.json").exists()
