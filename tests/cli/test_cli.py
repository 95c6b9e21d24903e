"""The command line as a person meets it: what it prints, and what it says when something is wrong."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers as tf
from safetensors.torch import load_file, save_file

import foretoken.measure.compare
from foretoken import LanguageModel
from foretoken.api.answer import Stream
from foretoken.memory.corpus.build import build
from foretoken.memory.fingerprint import fingerprint
from foretoken.memory.history import History
from helpers.commanding import call
from helpers.shapes import RECURRENT, ROW_BY_ROW, VOCAB, tiny_model
from helpers.tokenizing import character_tokenizer


@pytest.fixture
def run(monkeypatch, capsys, model_folder):
    """Run the command; (exit status, standard output, standard error)."""

    def run(*arguments: object, model: object = model_folder) -> tuple[int, str, str]:
        command, *rest = map(str, arguments)
        where = [str(model)] if command == "check" else ["--model", str(model)]
        return call(monkeypatch, capsys, command, *where, *rest)

    return run


def test_generate_prints_the_answer_and_a_summary(run, model_folder):
    status, out, err = run("generate", "--prompt", "abc abc", "--max-new-tokens", 40, "--show-drafts")
    assert status == 0 and "length: 40 tokens in" in err
    expected = foretoken.load(str(model_folder)).generate("abc abc", max_new_tokens=40).text
    assert out == expected + "\n"


def test_generate_reads_files_and_standard_input(run, tmp_path, monkeypatch):
    (tmp_path / "prompt.txt").write_text("abc abc")
    answers = {run("generate", "--file", tmp_path / "prompt.txt", "--max-new-tokens", 20)[1]}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"abc abc")))
    answers.add(run("generate", "-", "--max-new-tokens", 20)[1])
    answers.add(run("generate", "--prompt", "abc abc", "--max-new-tokens", 20)[1])
    assert len(answers) == 1


def test_generate_json_is_one_object(run):
    status, out, _ = run(
        "generate", "--prompt", "abc", "--max-new-tokens", 20, "--json", "--temperature", 0.9, "--seed", 1
    )
    answer = json.loads(out)
    assert status == 0 and answer["finish_reason"] == "length" and len(answer["tokens"]) == 20
    assert {"steps", "drafted", "accepted", "acceptance_length", "seconds"} <= answer["stats"].keys()


def test_compare_says_that_the_texts_are_identical(run):
    status, out, _ = run("compare", "--prompt", "abc abc", "--prompt", "hello", "--max-new-tokens", 30, "--rounds", 1)
    assert status == 0 and out.count("yes") == 2
    status, out, _ = run("compare", "--prompt", "abc abc", "--max-new-tokens", 30, "--temperature", 1.1, "--json")
    (row,) = json.loads(out)
    assert status == 0 and row["identical"] is True and row["tokens"] == 30
    assert row["plain"]["steps"] == 29 >= row["drafted"]["steps"] and row["speed"] > 0


def test_compare_fails_when_a_text_differs(run, monkeypatch):
    answer = LanguageModel.generate

    def cheat(self, prompt, **options):
        return answer(self, prompt, **(options if options["drafter"] == "none" else options | {"max_new_tokens": 5}))

    monkeypatch.setattr(LanguageModel, "generate", cheat)
    status, out, _ = run("compare", "--prompt", "abc abc", "--max-new-tokens", 30, "--rounds", 1)
    assert status == 1 and "no" in out and "yes" not in out


def test_check_reports_every_dtype(run):
    status, out, _ = run("check", "--json", "--max-new-tokens", 24)
    reports = {report["dtype"]: report for report in json.loads(out)}
    assert status == 0 and set(reports) == {"float32", "bfloat16", "float16"}
    assert reports["float32"]["identical"] and reports["float32"]["trees"] and reports["float32"]["answers"] == 9
    assert reports["float32"]["contexts"] == [[16, 39], [128, 151], [256, 279]]
    for report in reports.values():  # how much a dtype rounds, if it does, is the machine's matter
        assert report["noise"] >= 0
        assert all(0 <= difference["gap"] <= 2 * report["noise"] for difference in report["differences"])
    assert "float32" in run("check", "--dtype", "float32", "--max-new-tokens", 8)[1]


def test_check_fails_when_float32_differs(run, monkeypatch):
    from foretoken.engines.transformers.cache import KVCache

    monkeypatch.setattr(KVCache, "_gather", lambda self, path: None)
    status, out, _ = run("check", "--json", "--dtype", "float32", "--max-new-tokens", 24)
    (report,) = json.loads(out)
    assert status == 1 and not report["identical"]
    assert {difference["drafter"] for difference in report["differences"]} == {"RecordedTree"}


def test_an_interrupted_answer_keeps_its_text(run, monkeypatch):
    chunks = Stream.__iter__

    def interrupted(self):
        for i, chunk in enumerate(chunks(self)):
            if i == 10:
                raise KeyboardInterrupt
            yield chunk

    whole = run("generate", "--prompt", "abc", "--max-new-tokens", 40)[1]
    monkeypatch.setattr(Stream, "__iter__", interrupted)
    status, out, err = run("generate", "--prompt", "abc", "--max-new-tokens", 40)
    assert status == 130 and "interrupted" in err
    assert len(out) > 5 and whole.startswith(out.rstrip("\n"))


def drafted(run, *options: object) -> dict[str, Any]:
    status, out, _ = run("generate", "--prompt", "abc abc", "--max-new-tokens", 40, "--json", "--budget", 7, *options)
    assert status == 0
    return json.loads(out)


def test_answers_are_kept_in_the_file_and_under_the_name_that_are_given(run, tmp_path):
    def kept() -> dict[str, int]:
        with History(tmp_path / "h.sqlite") as history:
            return {row.namespace: row.answers for row in history.stats()}

    where = ["--history", tmp_path / "h.sqlite", "--background", "none"]
    first = drafted(run, *where)
    assert kept() == {"default": 1}
    drafted(run, *where, "--namespace", "mine")
    drafted(run, "--no-history", "--background", "none", "--namespace", "mine")
    assert kept() == {"default": 1, "mine": 1}
    assert drafted(run, *where)["tokens"] == first["tokens"]


def test_a_reference_file_is_drafted_from(run, tmp_path):
    alone = drafted(run, "--no-history", "--background", "none")
    (tmp_path / "quoted.txt").write_text("abc abc" + alone["text"])
    (tmp_path / "empty.txt").write_text("")
    both = ["--reference", tmp_path / "empty.txt", "--reference", tmp_path / "quoted.txt"]
    quoting = drafted(run, "--no-history", "--background", "none", *both)
    assert quoting["text"] == alone["text"] and quoting["stats"]["steps"] < alone["stats"]["steps"]


def test_a_budget_is_the_most_that_a_step_drafts(run):
    assert drafted(run, "--no-history", "--background", "none", "--budget", 0)["stats"]["drafted"] == 0
    stats = drafted(run, "--no-history", "--background", "none", "--budget", 2)["stats"]
    assert 0 < stats["drafted"] <= 2 * stats["steps"]


def test_a_corpus_may_be_named(run, tmp_path, model_folder):
    build([[1, 2, 3]], None, fingerprint(character_tokenizer()), tmp_path / "right")
    build([[1, 2, 3]], None, "another", tmp_path / "wrong")
    assert drafted(run, "--no-history", "--background", tmp_path / "right")["finish_reason"] == "length"
    for folder, said in (("wrong", "built with another tokenizer"), ("none", "There is no background corpus")):
        for command in ("generate", "compare"):
            status, out, err = run(command, "--prompt", "abc", "--background", tmp_path / folder)
            assert status == 2 and said in err and out == "" and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "--prompt", "a", "--no-history", "--namespace", "a\udcff"], "is no text"),
        (["generate", "--prompt", "a", "--reference", "/nowhere/a.txt"], "could not be read: No such file"),
        (["generate"], "There is no prompt"),
        (["generate", "--prompt", ""], "The prompt is empty"),
        (["generate", "--prompt", "a" * 600], "600 tokens and the model's context holds 512"),
        (["generate", "--prompt", "a", "--prompt", "b"], "answers one prompt and was given 2"),
        (["generate", "--prompt", "a", "--max-new-tokens", 0], "max_new_tokens is 0"),
        (["generate", "--prompt", "a", "--max-new-tokens", -1], "max_new_tokens is -1"),
        (["generate", "--prompt", "a", "--temperature", -1], "temperature is -1"),
        (["generate", "--prompt", "a", "--top-p", 0], "top_p is 0"),
        (["generate", "--prompt", "a", "--top-p", 1.5], "top_p is 1.5"),
        (
            ["generate", "--prompt", "a", "--drafter", "magic"],
            "choose one of mixed, ngram, anpd, prompt-lookup, recycle",
        ),
        (["generate", "--prompt", "a", "--dtype", "int3"], "no dtype 'int3'"),
        (["generate", "--prompt", "a", "--chat"], "no chat template"),
        (["generate", "--prompt", "a", "--device", "abacus"], "abacus"),
        (["generate", "--file", "/nowhere/prompt.txt"], "could not be read: No such file"),
        (["generate", "what"], "'what' is not an option"),
        (["compare", "--prompt", ""], "The prompt is empty"),
        (["check", "--dtype", "int3"], "no dtype 'int3'"),
    ],
)
def test_bad_input_ends_in_one_sentence_and_status_2(run, arguments, said):
    status, out, err = run(*arguments)
    assert status == 2 and said in err and out == "" and err.count("\n") == 1


def broken(folder: Path, source: Path, **changes: bytes | None) -> Path:
    shutil.copytree(source, folder)
    for name, content in changes.items():
        path = folder / name.replace("_json", ".json").replace("_safetensors", ".safetensors")
        path.unlink() if content is None else path.write_bytes(content)
    return folder


def test_models_that_cannot_be_used_are_refused(run, tmp_path, model_folder):
    def refusal(model: object) -> str:
        status, out, err = run("generate", "--prompt", "a", model=model)
        assert status == 2 and out == "" and err.count("\n") == 1
        return err

    assert "There is no model folder" in refusal(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refusal(tmp_path / "empty")
    assert "could not be read" in refusal(broken(tmp_path / "a", model_folder, config_json=b"{"))
    assert "weights" in refusal(broken(tmp_path / "b", model_folder, model_safetensors=b"no tensors"))
    assert "weights" in refusal(broken(tmp_path / "c", model_folder, model_safetensors=None))
    assert "no tokenizer" in refusal(
        broken(tmp_path / "d", model_folder, tokenizer_json=None, tokenizer_config_json=None)
    )
    weights = load_file(model_folder / "model.safetensors")
    save_file({name: weights[name] for name in weights if "layers.1" not in name}, tmp_path / "some.safetensors")
    partial = (tmp_path / "some.safetensors").read_bytes()
    assert "lack 9 tensors" in refusal(broken(tmp_path / "e", model_folder, model_safetensors=partial))
    bert = tf.BertModel(tf.BertConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    bert.save_pretrained(tmp_path / "vision")
    tf.BertForMaskedLM(bert.config).save_pretrained(tmp_path / "bert")
    character_tokenizer().save_pretrained(tmp_path / "bert")
    assert "BertLMHeadModel is not a decoder-only language model" in refusal(tmp_path / "bert")
    config = json.loads((tmp_path / "vision" / "config.json").read_text())
    (tmp_path / "vision" / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    assert "not a causal language model" in refusal(tmp_path / "vision")
    tiny_model("rwkv").save_pretrained(tmp_path / "rwkv")
    character_tokenizer().save_pretrained(tmp_path / "rwkv")
    assert "keeps a recurrent state in a way of its own" in refusal(tmp_path / "rwkv")


@pytest.mark.parametrize("shape", [*RECURRENT, *ROW_BY_ROW])
def test_models_with_a_recurrent_state_answer(run, tmp_path, shape):
    tiny_model(shape).save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    command = ["generate", "--prompt", "abc abc", "--max-new-tokens", 24, "--seed", 3, "--temperature", 0.7]
    plain = run(*command, "--drafter", "none", model=tmp_path)
    assert plain[0] == 0 and len(plain[1]) > 20
    assert ("nothing is drafted" in plain[2]) == (shape in ROW_BY_ROW)
    for options in ([], ["--drafter", "recycle", "--budget", 5, "--dtype", "float32"]):
        assert run(*command, *options, model=tmp_path)[:2] == plain[:2]


def test_a_file_that_is_no_text_is_refused(run, tmp_path):
    (tmp_path / "noise.bin").write_bytes(b"\x80\xff")
    assert "not UTF-8" in run("generate", "--file", tmp_path / "noise.bin")[2]


def test_text_comes_out_unchanged(run, model_folder, monkeypatch):
    """Tabs, returns and form feeds are part of an answer, and of a prompt."""
    from foretoken.api.answer import Chunk

    monkeypatch.setattr(Stream, "__iter__", lambda self: iter([Chunk("a\tb\r\x0c", False), Chunk("\n\t[red]c", True)]))
    assert run("generate", "--prompt", "abc", "--show-drafts")[1] == "a\tb\r\x0c\n\t[red]c\n"


def test_standard_input_that_is_no_text_is_refused(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\x80\xff")))
    assert "not UTF-8" in run("generate", "-")[2]
    assert "no text" in run("generate", "--prompt", "a\udcff")[2]


def test_a_reader_that_leaves_is_no_error():
    command = [sys.executable, "-m", "foretoken", "generate", "--model", "toy", "--prompt", "abc", "--json"]
    command += ["--background", "none", "--max-new-tokens", "8"]
    shell = subprocess.run(
        f"{shlex.join(map(str, command))} | true", shell=True, capture_output=True, text=True, check=True
    )
    assert "Traceback" not in shell.stderr and "Exception" not in shell.stderr


@pytest.mark.parametrize(("words", "said"), [(["--help"], "check"), (["--version"], foretoken.__version__)])
def test_help_and_version_import_nothing_that_takes_long(words, said):
    code = f"import sys; sys.argv = ['foretoken', *{words}]; import foretoken.cli as c\n"
    code += "try: c.main()\nexcept SystemExit: sys.exit(str({'torch', 'numba', 'numpy'} & sys.modules.keys() or ''))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said in ended.stdout and ended.stderr.strip() == ""


@pytest.mark.parametrize(("drafter", "imported"), [("prompt-lookup", set()), ("none", set()), ("ngram", {"numba"})])
def test_an_answer_imports_what_it_needs_and_no_collection_looks_at_that(drafter, imported):
    words = ["generate", "--model", "toy", "--prompt", "abc abc", "--background", "none", "--drafter", drafter]
    code = f"import gc, sys; sys.argv = ['foretoken', *{words}]; import foretoken.cli as c\n"
    code += "try: c.main()\nexcept SystemExit: pass\n"
    code += f"assert {{'numba', 'torch', 'transformers'}} & sys.modules.keys() == {imported}\n"
    code += "assert gc.isenabled() and gc.get_freeze_count()"
    subprocess.run([sys.executable, "-c", code], check=True)
