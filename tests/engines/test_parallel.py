"""Several processes, one answer: the same tokens, and each process scores its share of the rows."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    Phi3Config,
    Phi3ForCausalLM,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
)

from foretoken import DecodeStats, Draft, Drafter, FixedBudget, ForetokenError, Scores, Step, Target, decode
from foretoken.core.contracts import Top
from foretoken.drafters.draft_model import DraftModelDrafter
from foretoken.engines.parallel import MAX_WALK, ParallelTarget, part, process_group, share
from foretoken.engines.toy import ToyTarget
from foretoken.engines.transformers.choice import Choice
from foretoken.engines.transformers.self_test import FixedWidths, self_test
from foretoken.engines.transformers.target import TransformersTarget
from helpers.drafting import Oracle, RandomTrees, Stateless
from helpers.shapes import LLAMA, VOCAB, tiny_model

PATIENCE = timedelta(minutes=10)  # for an answer; a job takes a second, but who knows how busy the machine is
TIMEOUT = 6 * PATIENCE  # of a group, so that an answer that came did not come by waiting for it


@pytest.fixture
def alone(tmp_path):
    """A group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_recurrent_state_is_not_shared(alone):
    target = ParallelTarget(TransformersTarget(tiny_model("granite_4")))
    with pytest.raises(ForetokenError, match=r"recurrent state, .*: start one process"):
        target.prefill([1, 2, 3])


class Group:
    """The processes of one group, which do one job after the other."""

    def __init__(self, server: Any, where: Path, num: int) -> None:
        self.processes, self.ends = [], []
        for rank in range(num):
            mine, theirs = server.Pipe()
            self.processes.append(server.Process(target=work, args=(theirs, f"file://{where}", rank, num)))
            self.processes[-1].start()
            theirs.close()
            self.ends.append(mine)

    def run(self, job: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What the job returned in each process, its error, or None if the process was killed."""
        for end in self.ends:
            end.send((job, arguments))
        results = []
        for end in self.ends:
            try:
                results.append(end.recv() if end.poll(PATIENCE.seconds) else "no answer")
            except EOFError:
                results.append(None)
        return results

    def close(self) -> None:
        for process, end in zip(self.processes, self.ends, strict=True):
            end.close()
            process.join(PATIENCE.seconds)
            process.kill()


def work(end: Any, where: str, rank: int, num: int) -> None:
    """Do jobs until the other end is closed."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=num, timeout=TIMEOUT)
    try:
        while True:
            job, arguments = end.recv()
            try:
                end.send(job(*arguments))
            except ForetokenError as error:
                end.send(error)
    except EOFError:
        pass
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(server, tmp_path_factory):
    """Run a function in so many processes of one group, which later tests use again."""
    groups: dict[int, Group] = {}

    def ranks(num: int, job: Callable[..., Any], *arguments: Any) -> list[Any]:
        if num not in groups:
            groups[num] = Group(server, tmp_path_factory.mktemp("ranks") / "meeting", num)
        return groups[num].run(job, *arguments)

    yield ranks
    for group in groups.values():
        group.close()


@pytest.fixture
def ranks_that_part(server, tmp_path):
    """Run a function after which the processes are of no more use."""

    def ranks(num: int, job: Callable[..., Any]) -> list[Any]:
        group = Group(server, tmp_path / "meeting", num)
        results = group.run(job)
        group.close()
        return results

    return ranks


class Candidates(Stateless):
    """The right chain among two wrong ones, in shuffled order, so that any rank may have it."""

    def __init__(self, seed: int, prompt: Sequence[int], answer: Sequence[int], vocab: int) -> None:
        self.random, self.text, self.vocab = random.Random(seed), [*prompt, *answer], vocab

    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        right = self.text[len(context) :][: max_tokens // 3]
        chains = [[(token + shift) % self.vocab for token in right] for shift in range(3)]
        self.random.shuffle(chains)
        parents = [len(right) * i + j - 1 if j else -1 for i in range(3) for j in range(len(right))]
        return Draft(tuple(token for chain in chains for token in chain), tuple(parents))


class Windows(Stateless):
    """Adds lookahead decoding's window to another drafter's guesses; ``heard`` is the tops of its last level."""

    columns, levels = 6, 3

    def __init__(self, guesser: Drafter) -> None:
        self.guesser, self.heard = guesser, [Top([[1]], [[1.0]])]

    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        guesses = self.guesser.propose(context, max_tokens)
        parents = [*guesses.parents, -1]
        level = [-1, *range(len(guesses), len(guesses) + self.columns - 1)]  # column 0 of level 0 is the last token
        parents += level[1:-1]
        for _ in range(1, self.levels):
            parents += level
            level = [*range(len(parents) - self.columns, len(parents))]
        num_rows = len(parents) - len(guesses)
        likely = [token for row in self.heard[-1].tokens for token in row]
        window = [likely[row % len(likely)] for row in range(num_rows)]
        return Draft((*guesses.tokens, *window), tuple(parents), num_lookahead=num_rows)

    def observe(self, step: Step) -> None:
        if step.draft.num_lookahead:
            top = step.scores.top(range(1 + len(step.draft) - self.columns, 1 + len(step.draft)), 7)
            self.heard.append(Top(*(np.asarray(part).tolist() for part in top)))


class PaperWindows(Windows):
    """The paper's size for a model of 7B."""

    columns, levels = 15, 4


class Counted:
    """A target that counts the rows of its forwards."""

    def __init__(self, target: Target) -> None:
        self.target, self.rows = target, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)

    def score(self, last_token: int, draft: Draft) -> Scores:
        self.rows.append(1 + len(draft))
        return self.target.score(last_token, draft)


def told(target: Target, drafter: Drafter | None, prompt: Sequence[int], budget: int = 12, **options: Any) -> Any:
    """An answer, how many steps it took, and what a drafter with a window was told."""
    options = {"max_new_tokens": 32} | options
    stats, tokens = DecodeStats(), []
    for step in decode(target, drafter, prompt, budget=FixedBudget(budget), **options):
        stats.add(step)
        tokens += step.tokens
    return tokens, stats.steps, getattr(drafter, "heard", [])


def drafters(prompt: Sequence[int], answer: Sequence[int], vocab: int, seed: int = 0) -> list[Drafter]:
    known = seed, prompt, answer, vocab
    return [Oracle(*known), Windows(Candidates(*known)), Windows(RandomTrees(seed, vocab))]


# --- which rank has which rows


@st.composite
def drafts(draw: st.DrawFn, max_size: int) -> Draft:
    size = draw(st.integers(0, max_size))
    parents = tuple(draw(st.integers(-1, node - 1)) for node in range(size))
    return Draft((0,) * size, parents, num_lookahead=draw(st.integers(0, size)))


@given(drafts(60), st.integers(1, 8))
def test_every_node_has_one_owner_who_has_its_ancestors(draft, num_ranks):
    owners = share(draft, num_ranks)
    assert len(owners) == len(draft) and set(owners) <= set(range(num_ranks))
    for rank in range(num_ranks):
        nodes = part(draft, owners, rank)
        assert {node for node, owner in enumerate(owners) if owner == rank} <= set(nodes)
        assert len(draft.select(nodes)) == len(nodes), "select refuses a node without its parent"
    deepest = max(draft.depths, default=0)
    assert largest(draft, owners, num_ranks) <= -(-len(draft) // num_ranks) + 2 * deepest


@settings(max_examples=60, deadline=None)
@given(drafts(12), st.integers(1, 4))
def test_no_other_cut_of_the_leaves_makes_the_largest_part_smaller(draft, num_ranks):
    leaves = sorted((node for node in range(len(draft)) if node not in draft.parents), key=draft.ancestors)
    sizes = []
    for cuts in combinations(range(len(leaves) + 1), num_ranks - 1):
        slices = [leaves[i:j] for i, j in zip((0, *cuts), (*cuts, len(leaves)), strict=True)]
        sizes.append(max(len({node for leaf in one for node in draft.ancestors(leaf)}) for one in slices))
    assert largest(draft, share(draft, num_ranks), num_ranks) == min(sizes, default=len(draft))


def largest(draft: Draft, owners: Sequence[int], num_ranks: int) -> int:
    return max(len(part(draft, owners, rank)) for rank in range(num_ranks))


@pytest.mark.parametrize("num_ranks", [2, 3, 4, 8])
def test_a_window_of_the_papers_size_is_shared_evenly(num_ranks):
    guesses = Draft((0,) * 60, tuple(node - 1 if node % 4 else -1 for node in range(60)))  # 15 candidates of 4 tokens

    class Guesser(Stateless):
        def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
            return guesses

    draft = PaperWindows(Guesser()).propose([1], 60)
    assert len(draft) == 119
    assert largest(draft, share(draft, num_ranks), num_ranks) <= 119 / num_ranks + 6, "some of level 0 is scored twice"


# --- the same tokens


@cache
def toy_answers(parallel: bool) -> Any:
    told_all = []
    for seed, temperature in enumerate((0.0, 0.9)):
        toy = ToyTarget(temperature=temperature, seed=seed, model_seed=seed)
        plain = told(toy, None, [1, 2, seed])
        for drafter in drafters([1, 2, seed], plain[0], 5, seed):
            told_all.append(told(ParallelTarget(toy) if parallel else toy, drafter, [1, 2, seed]))
            assert told_all[-1][0] == plain[0]
    return told_all


@pytest.mark.parametrize("num", [2, 3])
def test_toy_answers_steps_and_tops_are_those_of_one_process(ranks, num):
    assert ranks(num, toy_answers, True) == [toy_answers(False)] * num


@cache
def model_answers(parallel: bool) -> Any:
    told_all = []
    penalty = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.3)])
    for shape, choice in (("llama", Choice()), ("gemma3", Choice(penalty)), ("gpt2", Choice(penalty, seed=7))):
        target: Target = TransformersTarget(tiny_model(shape), choice)
        prompt = [5, 9, 2, 5, 9]
        plain = told(target, None, prompt)
        for drafter in drafters(prompt, plain[0], VOCAB):
            told_all.append(told(ParallelTarget(target) if parallel else target, drafter, prompt))
            assert told_all[-1][0] == plain[0]
    return told_all


def test_model_answers_steps_and_tops_are_those_of_one_process(ranks):
    alone = model_answers(False)
    for answers in ranks(2, model_answers, True):
        assert [(tokens, steps) for tokens, steps, _ in answers] == [(tokens, steps) for tokens, steps, _ in alone]
        for (_, _, heard), (_, _, expected) in zip(answers, alone, strict=True):
            assert [top.tokens for top in heard] == [top.tokens for top in expected]
            for top, other in zip(heard, expected, strict=True):
                assert torch.allclose(torch.tensor(top.probs), torch.tensor(other.probs), atol=1e-5)


def rows_apart(dtype: torch.dtype, is_exact: bool) -> tuple[int, int]:
    """How many committed rows of this rank had other logits than plain decoding's, and how many it had."""
    model = tiny_model("llama", dtype=dtype)
    exact = FixedWidths(self_test(model).widths) if is_exact else None
    warpers = LogitsProcessorList([TemperatureLogitsWarper(0.8)])
    target, prompt = TransformersTarget(model, Choice(warpers, seed=7), exact=exact), [5, 9, 2, 5, 9]
    answer = decode(target, None, prompt, max_new_tokens=32)
    plain = [(step.tokens[0], step.scores.logits[0].clone()) for step in answer]
    apart = compared = 0
    for drafter in drafters(prompt, [token for token, _ in plain], VOCAB):
        expected = iter(plain)
        for step in decode(ParallelTarget(target), drafter, prompt, max_new_tokens=32, budget=FixedBudget(12)):
            for token, row in zip(step.tokens, (0, *(node + 1 for node in step.path)), strict=True):
                right, logits = next(expected)
                assert token == right or not is_exact
                if row in step.scores.rows:
                    compared += 1
                    apart += not torch.equal(step.scores.scores.logits[step.scores.rows[row]], logits)
    return apart, compared


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_exact_rows_are_plain_decodings_in_every_process(ranks, dtype):
    for apart, compared in ranks(2, rows_apart, dtype, True):
        assert apart == 0 and compared >= 32


def test_rows_of_processes_are_apart_where_they_are_not_kept_exact(ranks):
    assert all(apart for apart, _ in ranks(2, rows_apart, torch.float32, False)), "the control"


def at_the_border(parallel: bool) -> Any:
    """Phi-3's long variant, whose rotary positions change beyond 32 tokens: one forward on both sides mixes them."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    border: dict[str, Any] = {"original_max_position_embeddings": 32}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **border, **factors}
    torch.manual_seed(1)
    model = Phi3ForCausalLM(Phi3Config(**LLAMA | {"max_position_embeddings": 128}, **border, rope_parameters=rope))
    target: Target = TransformersTarget(model.eval())
    plain = told(target, None, [7, 3, 9])
    answers = [
        told(ParallelTarget(target) if parallel else target, drafter, [7, 3, 9])[0]
        for drafter in drafters([7, 3, 9], plain[0], VOCAB)
    ]
    assert answers == [plain[0]] * len(answers)
    return answers


def test_no_forward_crosses_where_positions_change(ranks):
    assert ranks(2, at_the_border, True) == [at_the_border(False)] * 2


def each_its_own_model() -> Any:
    toy = ToyTarget(model_seed=dist.get_rank())
    return told(ParallelTarget(toy), Windows(RandomTrees(0, 5)), [1, 2])


def test_copies_that_disagree_cannot_part(ranks):
    first, second = ranks(2, each_its_own_model)
    assert first == second and len(first[0]) == 32


def long_path(parallel: bool) -> Any:
    toy = ToyTarget()
    answer = told(toy, None, [1, 2], max_new_tokens=150)[0]
    drafter = Candidates(0, [1, 2], answer, 5)
    return told(ParallelTarget(toy) if parallel else toy, drafter, [1, 2], 3 * MAX_WALK + 21, max_new_tokens=150)


def test_a_path_longer_than_a_message(ranks):
    assert ranks(2, long_path, True) == [long_path(False)] * 2


def calls(parallel: bool) -> Any:
    seen: list[list[int]] = []

    def remember(tokens: Sequence[int], logits: list[float]) -> list[float]:
        seen.append([*tokens])
        return logits

    toy = ToyTarget(processor=remember)
    plain = told(ToyTarget(), None, [1, 2])[0]
    target = ParallelTarget(toy) if parallel else toy
    told(target, Candidates(0, [1, 2], plain, 5), [1, 2])
    return seen


def test_processors_see_the_calls_of_plain_decoding(ranks):
    expected = calls(False)
    for seen in ranks(2, calls, True):
        assert seen == expected[: len(seen)] and len(seen) > 20, "tokens accepted last may be pending in the end"


def in_a_smaller_group() -> Any:
    group = dist.new_group([1, 2], timeout=TIMEOUT)
    member = dist.get_rank() in (1, 2)
    answer = told(ParallelTarget(ToyTarget(), group), Windows(RandomTrees(3, 5)), [1, 2]) if member else None
    dist.barrier()  # a process that leaves early may take the group with it
    return answer


def test_a_group_of_some_processes(ranks):
    expected = told(ToyTarget(), Windows(RandomTrees(3, 5)), [1, 2])
    assert ranks(3, in_a_smaller_group) == [None, expected, expected]


def forgetful() -> Any:
    class Forgetful(ParallelTarget):
        def keep(self, path: Sequence[int]) -> None:
            super().keep(path)
            self._pending = []

    plain = told(ToyTarget(), None, [1, 2])[0]
    return told(Forgetful(ToyTarget()), Candidates(0, [1, 2], plain, 5), [1, 2])[0] == plain


def test_a_rank_that_forgets_what_others_scored_is_caught(ranks):
    """The tests above must be able to fail."""
    assert ranks(2, forgetful) == [False, False]


# --- the work is divided


def rows() -> tuple[int, int]:
    """Rows that this rank scored, and rows that one process scores."""
    counts = []
    for parallel in (True, False):
        counted = Counted(ToyTarget(vocab=32))
        told(ParallelTarget(counted) if parallel else counted, PaperWindows(RandomTrees(0, 32)), [1, 2], 60)
        counts.append(sum(counted.rows))
    return counts[0], counts[1]


@pytest.mark.parametrize("num", [2, 3])
def test_each_rank_scores_its_share(ranks, num):
    shares = ranks(num, rows)
    assert sum(mine for mine, _ in shares) > shares[0][1], "ancestors are scored by several"
    for mine, alone in shares:
        assert mine < 1.3 * alone / num


# --- what goes wrong ends in a sentence


def killed() -> Any:
    class Mortal(RandomTrees):
        def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
            if len(context) > 12 and dist.get_rank() == 1:
                os._exit(1)
            return super().propose(context, max_tokens)

    return told(ParallelTarget(ToyTarget()), Mortal(0, 5), [1, 2])


def test_a_rank_that_dies_ends_the_others(ranks_that_part):
    first, second, third = ranks_that_part(3, killed)
    assert second is None
    for survivor in (first, third):
        assert isinstance(survivor, ForetokenError) and "Another process of the group has ended" in str(survivor)


def different_drafts() -> Any:
    return told(ParallelTarget(ToyTarget()), RandomTrees(dist.get_rank(), 5), [1, 2])


def different_prompts() -> Any:
    return told(ParallelTarget(ToyTarget()), None, [1, 2 + dist.get_rank()])


@pytest.mark.parametrize("job", [different_drafts, different_prompts])
def test_ranks_that_part_are_caught(ranks_that_part, job):
    for error in ranks_that_part(2, job):
        assert isinstance(error, ForetokenError) and "FixedBudget" in str(error)


def second_choices() -> Any:
    return DraftModelDrafter(ParallelTarget(ToyTarget()))  # type: ignore[arg-type]  # what it refuses


def test_the_ranks_exchange_no_second_choices_and_say_so_up_front(ranks):
    for error in ranks(2, second_choices):
        assert isinstance(error, ForetokenError) and "DraftModelDrafter needs the second choice" in str(error)


def test_without_a_group():
    with pytest.raises(ForetokenError, match="torchrun"):
        ParallelTarget(ToyTarget())


def test_a_group_is_joined_and_left(monkeypatch):
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": 29517}.items():
        monkeypatch.setenv(name, str(value))
    with process_group("cpu") as ranks:
        assert (ranks.rank, ranks.num, str(ranks.device)) == (0, 1, "cpu") and dist.get_backend() == "gloo"
        assert told(ParallelTarget(ToyTarget()), RandomTrees(0, 5), [1, 2])[0] == told(ToyTarget(), None, [1, 2])[0]
    assert not dist.is_initialized()


@pytest.mark.parametrize("environment", [{}, {"RANK": 0, "WORLD_SIZE": 1}])
def test_a_process_that_torchrun_did_not_start(monkeypatch, environment):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ForetokenError, match="start them with torchrun"), process_group():
        pass
