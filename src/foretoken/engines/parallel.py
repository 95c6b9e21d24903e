"""Driven: one answer on several devices, each with a copy of the model and a share of every draft's rows.

Lookahead parallelism (Fu et al. 2024, arXiv 2402.02057): where tensor parallelism exchanges activations in every layer,
the ranks here exchange a few token ids after a whole forward. Each of them runs the very same ``decode``.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from foretoken.core.contracts import Need, Scores, Target, Top, reread_by
from foretoken.core.draft import Draft
from foretoken.core.errors import ForetokenError
from foretoken.core.verify import verify_match

PATIENCE = timedelta(minutes=2)  # how long a rank waits for the others, which may have a forward to finish
MAX_WALK = 63  # tokens of a rank's walk that go into its message, which is 512 bytes with the digest
NOTHING = -1  # no token


class ParallelTarget:
    """A target whose rows are scored by all ranks of a process group together.

    A rank scores the rows that it owns and their ancestors, which they attend to. Where the accepted path goes on in
    another rank's rows, this rank's cache lacks those tokens, and its next forward begins with them.

    A step takes one collective, and one more where the drafter asks ``top``: each rank follows its own choices through
    its part as far as they match, and all gather these walks. Rank 0 chooses after the last committed token, so that
    copies that round differently cannot part; where they do, a row is asked of its owner.

    Drafts must be the same on every rank, so that none may depend on a clock: use a ``FixedBudget``. When the loop ends
    the cache of a rank may lack accepted tokens.

    Args:
        target: This rank's copy of the model.
        group: The ranks that share the work. If None, all of them.

    Raises:
        ForetokenError: If there is no process group; from the methods, if the ranks part or one of them ends.
    """

    def __init__(self, target: Target, group: dist.ProcessGroup | None = None) -> None:
        self.target, self.ranks = target, Ranks(group)
        self._pending: list[int] = []  # accepted tokens that this rank's cache lacks
        self._draft = Draft()
        self._owners: list[int] = []  # of each node of the draft
        self._rows: dict[int, int] = {}  # each row that this rank scored, and where the inner target has it

    @property
    def provides(self) -> frozenset[Need]:
        """The ranks exchange tokens: those that were chosen, and the likeliest."""
        return self.target.provides & {"top"}

    @property
    def supports_trees(self) -> bool:
        return self.target.supports_trees

    @property
    def max_length(self) -> int | None:
        return self.target.max_length

    @property
    def max_draft_depth(self) -> int | None:
        limit = self.target.max_draft_depth
        # One less than the inner target allows, since pending tokens and the one after them go through one forward.
        return None if limit is None else max(0, limit - len(self._pending) - 1)

    def prefill(self, prompt: Sequence[int]) -> Scores:
        self._pending, self._draft, self._owners, self._rows = [], Draft(), [], {0: 0}
        scores = self.target.prefill(prompt)
        if reread_by(self.target) is not None:  # what is read again differs from rank to rank, and so would drafts
            raise ForetokenError(
                "The model keeps a recurrent state, whose drafts cannot be shared among processes: start one process, "
                "or take another model."
            )
        return self._exchanged(scores, Draft(), hash(tuple(prompt)))

    def score(self, last_token: int, draft: Draft) -> Scores:
        self._draft, self._owners = draft, share(draft, self.ranks.num)
        nodes = part(draft, self._owners, self.ranks.rank)
        root = len(self._pending)
        self._rows = {0: root} | {node + 1: root + 1 + i for i, node in enumerate(nodes)}
        first, *chain = *self._pending, last_token
        scored = graft(chain, draft.select(nodes))
        # Integers and tuples of them have the same hash in every process.
        digest = hash((last_token, draft.tokens, draft.parents, draft.num_lookahead))
        return self._exchanged(self.target.score(first, scored), scored, digest)

    def keep(self, path: Sequence[int]) -> None:
        mine = [node for node in path if node + 1 in self._rows]  # the path's first nodes, as parts hold all ancestors
        self.target.keep([*range(len(self._pending)), *(self._rows[node + 1] - 1 for node in mine)])
        self._pending = [self._draft.tokens[node] for node in path[len(mine) :]]

    def _exchanged(self, scores: Scores, scored: Draft, digest: int) -> ParallelScores:
        """The scores of all ranks, from this one's, the draft that it scored, and the hash of what all should score."""
        verdict = verify_match(scored, scores)  # from the pending tokens on: processors see all that is committed
        walk = [*(scored.tokens[node] for node in verdict.path), verdict.next_token][len(self._pending) :]
        return ParallelScores(
            self.ranks, scores, self._draft, self._owners, self._rows, self.ranks.gather(digest, walk)
        )


class ParallelScores(Scores):
    """The scores of a draft whose rows several ranks have."""

    def __init__(
        self,
        ranks: Ranks,
        scores: Scores,
        draft: Draft,
        owners: Sequence[int],
        rows: dict[int, int],
        walks: list[list[int]],
    ) -> None:
        self.ranks, self.scores, self.draft, self.rows, self.walks = ranks, scores, draft, rows, walks
        self.owners = [0, *owners]  # of each row

    def choose(self, row: int) -> int:
        owner, path = self.owners[row], self.draft.path(row - 1)
        walk = self.walks[owner]
        if len(walk) > len(path) and walk[: len(path)] == path:
            return walk[len(path)]
        # Off its owner's walk, or beyond the message's end. The walks are the same everywhere, so all ranks get here.
        return self.ranks.broadcast(self.scores.choose(self.rows[row]) if owner == self.ranks.rank else NOTHING, owner)

    def top(self, rows: Sequence[int], k: int) -> Top:
        mine = [i for i, row in enumerate(rows) if self.owners[row] == self.ranks.rank]
        # Exact for token ids and for float32 probabilities.
        table = torch.zeros(2, len(rows), k, dtype=torch.float64, device="cpu")
        if mine:
            tokens, probs = self.scores.top([self.rows[rows[i]] for i in mine], k)
            found = torch.stack([torch.as_tensor(part, dtype=torch.float64, device="cpu") for part in (tokens, probs)])
            found[0] += 1  # so that 0 is no token, where the vocabulary has fewer than k
            table[:, mine, : found.shape[2]] = found
        table = self.ranks.sum(table)
        table = table[:, :, (table[0] > 0).any(0)]
        return Top(table[0].long().numpy() - 1, table[1].numpy())


class Ranks:
    """The processes that share the work, and the three collectives that they need, all of tensors.

    Args:
        group: A process group of torch.distributed. If None, the default one.

    Raises:
        ForetokenError: If there is no process group; from the methods, if a rank is gone.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_initialized():
            raise ForetokenError(
                "Lookahead parallelism needs a process group: start with torchrun, and enter process_group()."
            )
        self.group, self.rank, self.num = group, dist.get_rank(group), dist.get_world_size(group)
        self.device = torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")

    def gather(self, digest: int, walk: Sequence[int]) -> list[list[int]]:
        """The walks of all ranks, at most ``MAX_WALK`` tokens of each.

        Raises:
            ForetokenError: If the ranks' digests differ.
        """
        message = [digest, *walk[:MAX_WALK]]
        message += [NOTHING] * (1 + MAX_WALK - len(message))  # a fixed size, so that no difference goes unnoticed
        mine = torch.tensor(message, device=self.device)
        messages = [torch.empty_like(mine) for _ in range(self.num)]
        with one_sentence():
            dist.all_gather(messages, mine, group=self.group)
            rows: list[list[int]] = torch.stack(messages).tolist()
        for rank, row in enumerate(rows):
            if row[0] != digest:
                raise ForetokenError(
                    f"Ranks {rank} and {self.rank} were given different prompts or made different drafts: all ranks "
                    "need the same prompt, the same drafter and a FixedBudget, as drafts may not depend on a clock."
                )
        return [[token for token in row[1:] if token != NOTHING] for row in rows]

    def broadcast(self, number: int, owner: int) -> int:
        """The number that rank ``owner`` gives."""
        message = torch.tensor([number], device=self.device)
        with one_sentence():
            dist.broadcast(message, group=self.group, group_src=owner)
            return int(message)

    def sum(self, table: Tensor) -> Tensor:
        """The sum of the ranks' tables, on the CPU."""
        message = table.to(self.device)
        with one_sentence():
            dist.all_reduce(message, group=self.group)
            return message.cpu()


def share(draft: Draft, num_ranks: int) -> list[int]:
    """The rank that owns each node, so that the largest part is small.

    A part is the nodes that a rank owns and their ancestors. In depth-first order the leaves are cut into slices, one a
    rank, so that neighbours' common ancestors are computed once; no other cut of them makes the largest part smaller.
    Of lookahead's window a slice is some columns, and of its candidates some whole ones.

    >>> window = Draft(tokens=(4, 5, 6, 7, 8), parents=(-1, 0, -1, 0, 1))  # levels of 2 and 3 columns
    >>> share(window, 2), part(window, share(window, 2), 0), part(window, share(window, 2), 1)
    ([0, 0, 1, 1, 0], [0, 1, 4], [0, 2, 3])
    """
    branches: list[list[int]] = []  # what each leaf adds to the leaves before it
    for node in sorted(range(len(draft)), key=draft.ancestors):
        if not branches or draft.parents[node] != branches[-1][-1]:
            branches.append([])
        branches[-1].append(node)

    def slices(most: int) -> list[int]:
        """The rank of each branch, where a rank takes branches as long as its part has at most so many nodes."""
        ranks: list[int] = []
        rank = size = 0
        for branch in branches:
            size += len(branch)
            if size > most:
                rank, size = rank + 1, draft.depths[branch[-1]]  # the first of a part brings its ancestors
            ranks.append(rank)
        return ranks

    deepest = max(draft.depths, default=0)
    most = bisect_left(range(len(draft)), True, lo=deepest, key=lambda most: slices(most)[-1] < num_ranks)
    owners = [0] * len(draft)
    for rank, branch in zip(slices(most), branches, strict=True):
        for node in branch:
            owners[node] = rank
    return owners


def part(draft: Draft, owners: Sequence[int], rank: int) -> list[int]:
    """The nodes that a rank scores, in order: its own and their ancestors."""
    owned = [node for node, owner in enumerate(owners) if owner == rank]
    return sorted({ancestor for node in owned for ancestor in draft.ancestors(node)})


def graft(chain: Sequence[int], draft: Draft) -> Draft:
    """The draft below a chain of tokens."""
    parents = (*range(-1, len(chain) - 1), *(parent + len(chain) for parent in draft.parents))
    return Draft((*chain, *draft.tokens), parents, num_lookahead=draft.num_lookahead)


@contextmanager
def process_group(
    device: str | None = None, max_ranks: int | None = None, patience: timedelta = PATIENCE
) -> Iterator[Ranks]:
    """Join the processes that torchrun started, and leave them in the end; NCCL between GPUs, Gloo between CPUs.

    Torch's generator starts alike in all of them, so that a seed drawn from it is the same.

    Args:
        device: "cpu", "cuda", or None for GPUs if there are any.
        max_ranks: The most processes that have work. If None, there is no limit.
        patience: How long to wait for the others, here and in each collective.

    Yields:
        The ranks; the model belongs on their device.

    Raises:
        ForetokenError: If torchrun did not start this process, there are too many of them, or one is missing.
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise ForetokenError(
            "Lookahead parallelism runs in several processes: start them with torchrun --nproc-per-node 2 -m foretoken."
        )
    num_ranks, num_here = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if max_ranks is not None and num_ranks > max_ranks:
        raise ForetokenError(f"There is work for {max_ranks} processes and there are {num_ranks}: start fewer.")
    gpu = None
    if (device or "").startswith("cuda") or (device is None and torch.cuda.is_available()):
        if torch.cuda.device_count() < num_here:
            raise ForetokenError(
                f"There are {torch.cuda.device_count()} GPUs and {num_here} processes: start one for each GPU."
            )
        gpu = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(gpu)
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # else NCCL ends the process instead of raising an error
    try:
        dist.init_process_group("nccl" if gpu else "gloo", timeout=patience, device_id=gpu)
    except (ValueError, RuntimeError) as error:
        raise ForetokenError("The processes did not meet: start all of them together, with torchrun.") from error
    try:
        ranks = Ranks()
        torch.manual_seed(ranks.broadcast(torch.initial_seed() % 2**63, 0))
        yield ranks
    finally:
        dist.destroy_process_group()


@contextmanager
def one_sentence() -> Iterator[None]:
    """Say in a sentence that a collective failed; torch raises a RuntimeError that names sockets."""
    try:
        yield
    except RuntimeError as error:
        raise ForetokenError(
            "Another process of the group has ended or does not answer: see what it said, and start all of them again."
        ) from error
