import numpy as np
import pytest
import torch

from foretoken.core.errors import ForetokenError, ModelError
from foretoken.speculators.mlp import MLPSpeculatorConfig
from foretoken.training.factored import FactoredMLPSpeculator
from foretoken.training.judge import judge
from foretoken.training.kinds import Shape, finished, start
from foretoken.training.optimizers import orthogonal, share_of_rate
from foretoken.training.shards import Generating, Shard, Shards
from foretoken.training.tokens import BLOCK, HELD_OUT, TokenStream, files_of


def encode(texts):
    return [[ord(c) % 90 + 1 for c in text] for text in texts]


def test_states_are_what_the_output_head_reads(base):
    ids = torch.randint(0, 4096, (2, 20), generator=torch.Generator().manual_seed(0))
    states = base.states(ids)
    whole = base.model(input_ids=ids, output_hidden_states=True)
    assert torch.allclose(states, whole.hidden_states[-1], atol=1e-6)
    assert torch.allclose(base.logprobs(states), whole.logits.log_softmax(-1), atol=1e-4)
    assert not base.head._forward_pre_hooks


def test_generated_texts_are_those_of_the_seed_and_of_the_most_probable_tokens(base):
    prompts = torch.randint(0, 4096, (3, 8), generator=torch.Generator().manual_seed(0))
    texts = base.generate(prompts, 12, 1.0, 2, (1, 2))
    assert torch.equal(texts, base.generate(prompts, 12, 1.0, 2, (1, 2)))
    assert not torch.equal(texts, base.generate(prompts, 12, 1.0, 2, (1, 3)))
    assert torch.equal(texts[:, :8], prompts)
    best = base.model(input_ids=texts).logits[:, 7:-1].topk(2).indices
    assert (best == texts[:, 8:, None]).any(-1).all()


@pytest.mark.parametrize("tied", [False, True])
def test_folding_keeps_the_function(tied):
    torch.manual_seed(0)
    config = MLPSpeculatorConfig(50, 12, 10, 3, tie_weights=tied, scale_input=True)
    module = FactoredMLPSpeculator(config, torch.randn(50, 12), torch.randn(50, 12))
    states, tokens = torch.randn(2, 7, 12), torch.randint(0, 50, (2, 11))
    folded = module.folded()
    for ours, theirs in zip(module.head_logits(states, tokens), folded.head_logits(states, tokens), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)
    names = {name.rsplit(".", 1)[0] for name in folded.state_dict()}
    assert names == {f"{part}.{i}" for part in ("emb", "head", "ln") for i in range(1 if tied else 3)} | {
        f"proj.{i}" for i in range(2 if tied else 3)
    }


@pytest.mark.parametrize("kind", ["mlp-speculator", "blockwise", "medusa"])
def test_every_kind_leaves_the_base_alone_and_saves_a_copy(base, kind):
    before = base.head.weight.clone()
    module = start(Shape(kind, 2, 8), base)
    saved = finished(module)
    assert {weight.dtype for weight in saved.parameters()} == {torch.float16}
    assert {weight.dtype for weight in module.parameters()} == {torch.float32}
    states, tokens = torch.randn(1, 6, 16), torch.randint(0, 4096, (1, 9))
    sum(module.losses(states, tokens)).backward()
    torch.optim.SGD([weight for weight in module.parameters() if weight.requires_grad], 1.0).step()
    assert torch.equal(base.head.weight, before) and base.head.weight.grad is None


@pytest.mark.parametrize("shape", [(8, 8), (5, 16), (16, 5)])
def test_muon_makes_a_matrix_orthogonal(shape):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator) * torch.logspace(0, 1, shape[1])
    made = torch.linalg.svdvals(orthogonal(matrix))
    assert made.min() > 0.4 and made.max() < 1.3
    before = torch.linalg.svdvals(matrix)
    assert before.max() / before.min() > 1.3 / 0.4


def test_the_rate_goes_up_and_down():
    shares = [share_of_rate(step, 1000, 0.1) for step in range(1000)]
    assert shares[:50] == sorted(shares[:50]) and shares[50:] == sorted(shares[50:], reverse=True)
    assert max(shares) == pytest.approx(1.0, abs=1e-3) and shares[-1] == pytest.approx(0.1, abs=1e-3)
    assert shares[24] == pytest.approx(0.75)  # half of a parabola


def test_what_is_held_out_is_in_no_window(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "a.txt"
    path.write_text("x" * (BLOCK * HELD_OUT * 3))
    tokens = rng.permutation(BLOCK * HELD_OUT * 3)  # every token once
    stream = TokenStream(tmp_path, [path], lambda texts: [tokens[: len(text)].tolist() for text in texts], "f")
    kept = {int(x) for x in stream.windows(2000, 60, [0]).ravel()}
    held = {int(x) for x in stream.windows(500, 60, [0], held_out=True).ravel()}
    assert len(kept) > 50_000 and len(held) > 1000 and not kept & held


def test_data_may_be_files_folders_and_json_lines(tmp_path):
    folder = tmp_path / "data"
    (folder / "inner").mkdir(parents=True)
    (folder / "b.txt").write_text("b" * 30_000)
    (folder / "inner" / "c.jsonl").write_text('{"text": "' + "c" * 30_000 + '"}\nnonsense\n')
    assert [path.name for path in files_of([folder])] == ["b.txt", "c.jsonl"]
    stream = TokenStream(tmp_path / "work", [folder], encode, "f", 0)
    assert len(stream) == 60_002
    assert list(stream.bad.values()) == [[2]]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("few.txt", b"little", "training needs"),
        ("none.txt", b"", "training needs"),
        ("not.gz", b"plain", "no .gz archive"),
        ("not.txt", b"\xff\xfe\xfd" * 9, "could not be read"),
    ],
)
def test_data_that_cannot_be_used_is_refused_in_one_sentence(tmp_path, name, content, sentence):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ForetokenError, match=sentence):
        TokenStream(tmp_path / "work", [path], encode, "f")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ForetokenError, match="holds no file"):
        files_of([tmp_path])


class Counting:
    """A base that counts what it is asked for."""

    width = 3

    def __init__(self, broken_at=-1):
        self.generated = 0
        self.broken_at = broken_at

    def generate(self, prompts, length, temperature, top_k, seed):
        if self.generated == self.broken_at:
            raise KeyboardInterrupt
        self.generated += 1
        return torch.cat([prompts, torch.full((len(prompts), length), seed[-1])], 1)

    def states(self, ids):
        return ids[..., None].expand(*ids.shape, 3).float() % 7


def test_an_interrupted_generation_goes_on_without_duplicates(tmp_path, stream):
    own = Generating(prompt=4, length=8, batch=2)
    whole = Shards(tmp_path / "whole", Counting(), stream, 6, 0, own=own)
    for number in range(3):
        whole.load(number)
    base = Counting(broken_at=4)
    torn = Shards(tmp_path / "torn", base, stream, 6, 0, own=own)
    torn.load(0)
    with pytest.raises(KeyboardInterrupt):
        torn.load(1)
    base.broken_at = -1
    for number in range(3):
        assert np.array_equal(torn.load(number).ids, whole.load(number).ids)
        assert np.array_equal(torn.load(number).states, whole.load(number).states)
    assert base.generated == 4 + 6  # of the second shard's three batches, the one that was made comes again
    names = sorted(path.name for path in (tmp_path / "torn").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "whole").iterdir())
    prompts = np.concatenate([whole.load(number).ids[:, :4] for number in range(3)])
    assert len(np.unique(prompts, axis=0)) == len(prompts)


def test_states_that_training_has_passed_are_dropped_and_texts_kept(tmp_path, stream):
    shards = Shards(tmp_path, Counting(), stream, 4, 0, own=Generating(prompt=4, length=8))
    for number in range(3):
        shards.load(number)
    shards.drop_before(2)
    assert len(list(tmp_path.glob("*.states.npy"))) == 1 and len(list(tmp_path.glob("*.ids.npy"))) == 3


def test_states_beyond_float16_are_refused(tmp_path, stream):
    base = Counting()
    base.states = lambda ids: torch.full((*ids.shape, 3), 1e6)
    with pytest.raises(ModelError, match="float16"):
        Shards(tmp_path, base, stream, 4, 0).load(0)
    assert not list(tmp_path.glob("*.states.npy"))


def test_accepted_length_is_that_of_a_walk(base):
    """Against a walk written down separately, with the speculator's own drafts one position at a time."""
    torch.manual_seed(0)
    module = start(Shape("mlp-speculator", 2, 8), base)
    ids = torch.randint(0, 4096, (3, 30)).numpy()
    states = torch.randn(3, 30, 16).half().numpy()

    def draft(row, at):
        state, token, guesses = torch.from_numpy(states[row, at]).float(), torch.tensor(int(ids[row, at + 1])), []
        for stage in range(2):
            state = module.step(stage, state, token)
            token = module.logits(stage, state).argmax()
            guesses.append(int(token))
        return guesses

    for row in range(3):  # let some guesses be right
        for at in range(4, 20, 3):
            right = 1 + row % 2
            ids[row, at + 2 : at + 2 + right] = draft(row, at)[:right]
    verdict = judge(module, Shard(ids, states, 4), torch.device("cpu"))
    steps = tokens = 0
    for row in range(3):
        position = 4
        while position < 30 - 3:
            guesses = draft(row, position)
            right = [guess == ids[row, position + 2 + i] for i, guess in enumerate(guesses)]
            accepted = [*right, False].index(False)
            steps, tokens, position = steps + 1, tokens + accepted + 1, position + accepted + 1
    assert verdict.accepted_length == pytest.approx(tokens / steps)
    assert 1.1 < verdict.accepted_length <= 3.0 and all(0 <= share <= 1 for share in verdict.top1)
