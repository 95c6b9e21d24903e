"""An answer: whole, or while it is written."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from foretoken.core.contracts import FinishReason, Need, Step
from foretoken.core.stats import DecodeStats
from foretoken.engines.base import Detokenizer
from foretoken.memory.prefixes import Prefix


@dataclass(frozen=True)
class Result:
    """An answer.

    Args:
        text: The answer's text, without the prompt.
        tokens: Its token ids, the stop token with them.
        num_prompt_tokens: How many tokens the prompt had.
        finish_reason: "stop" at a stop token or string, "length" at a limit, None if the caller stopped.
        stats: What it cost: steps, drafted, accepted, acceptance length, seconds.
        exact: Whether drafted logits were plain decoding's in every bit, so that no rounding can have changed the text.
    """

    text: str
    tokens: tuple[int, ...]
    num_prompt_tokens: int
    finish_reason: FinishReason | None
    stats: DecodeStats
    exact: bool = False


@dataclass(frozen=True)
class Chunk:
    """The text that one token completed, and whether the token was a drafted one that the target accepted."""

    text: str
    accepted: bool


class Stream:
    """An answer while it is written. Iterate over its chunks; ``result`` holds the answer so far.

    The clock of its stats starts when the first chunk is asked for.

    Args:
        steps: Of ``decode``.
        detokenizer: Makes text of their tokens.
        num_prompt_tokens: How many tokens the prompt has.
        exact: Whether drafted logits are plain decoding's in every bit.
        provides: What the scores of its steps can be asked for.
        prefix: Where the first blocks of its prompt are kept, if they are.
    """

    def __init__(
        self,
        steps: Iterator[Step],
        detokenizer: Detokenizer,
        num_prompt_tokens: int,
        exact: bool = False,
        provides: frozenset[Need] = frozenset(),
        prefix: Prefix | None = None,
    ) -> None:
        self._steps, self._detokenizer = steps, detokenizer
        self.stats = DecodeStats()
        self._text: list[str] = []
        self._tokens: list[int] = []
        self.num_prompt_tokens, self.exact, self.provides = num_prompt_tokens, exact, provides
        self._prefix = prefix
        self.finish_reason: FinishReason | None = None
        self._chunks = (chunk for _, chunks in self.steps() for chunk in chunks if chunk.text)

    def __iter__(self) -> Iterator[Chunk]:
        return self._chunks

    @property
    def num_cached_tokens(self) -> int:
        """How many tokens of the prompt need not be read, once the first step has come; see ``Prefixes``."""
        return self._prefix.num_found if self._prefix is not None else 0

    @property
    def result(self) -> Result:
        text, tokens = "".join(self._text), tuple(self._tokens)
        return Result(text, tokens, self.num_prompt_tokens, self.finish_reason, self.stats, self.exact)

    def steps(self) -> Generator[tuple[Step, Iterator[Chunk]], None, None]:
        """The steps, the prefill's first, and the chunks of each: for a caller that does something else in between.

        A step has a chunk for each of its tokens, whose text may be empty; the last step has one more, of what was held
        back. They must be read before the next step is asked for. Closing the generator ends the answer.
        """
        self.stats = DecodeStats()
        try:
            for step in self._steps:
                self.stats.add(step)
                yield step, self._settled(step)
        finally:
            if isinstance(self._steps, Generator):
                self._steps.close()

    def _settled(self, step: Step) -> Iterator[Chunk]:
        for i, token in enumerate(step.tokens):
            self._tokens.append(token)
            yield self._chunk(self._detokenizer.push(token), accepted=i < step.num_accepted)
        self.finish_reason = step.finish_reason
        if step.finish_reason is not None:
            yield self._chunk(self._detokenizer.flush(), accepted=False)

    def _chunk(self, text: str, accepted: bool) -> Chunk:
        self._text.append(text)
        return Chunk(text, accepted)
