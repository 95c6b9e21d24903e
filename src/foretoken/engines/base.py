"""What a driven engine is: text to tokens and back, and a target for every answer.

We run the loop; the engine runs the model's forwards. ``LanguageModel`` needs no more of a library than this.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from foretoken.core.budget import Budget
from foretoken.core.contracts import Drafter, Helpers, Step, Target
from foretoken.core.decode import decode
from foretoken.core.errors import RequestError
from foretoken.core.sampling import Sampling
from foretoken.memory.self_tests import SelfTest

DEFAULT_NEW_TOKENS = 256  # if neither the caller nor the model says how long an answer may be

FOUND = "auto"  # stands for the trained heads in the model's own folder, if there are any

NOTHING: Mapping[str, Any] = {}
Exact = Literal["auto"] | bool  # whether drafted logits must be plain decoding's in every bit
Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]
BatchEncoder = Callable[[list[str]], list[list[int]]]


def check_exact(exact: Any) -> Exact:
    """A setting of exactness as it was given.

    Raises:
        ForetokenError: If it is neither "auto" nor True nor False.
    """
    if exact is True or exact is False or exact == "auto":
        return exact  # type: ignore[no-any-return]
    raise RequestError(f'exact is {exact!r:.100}: give True, False or "auto".')


class Detokenizer(Protocol):
    """Gives the text of one answer while its tokens come."""

    @property
    def pending(self) -> str:
        """The text that is held back and would be given if the answer ended now."""
        ...

    def push(self, token: int) -> str:
        """The text that this token settles, maybe none."""
        ...

    def flush(self) -> str:
        """The text that was held back, at the end of the answer."""
        ...


class Tokens(Protocol):
    """A model's tokens: how text becomes tokens and tokens become text."""

    @property
    def vocab_size(self) -> int:
        """How many tokens there are; ids are below it."""
        ...

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the vocabulary: what was remembered in other tokens is of no use."""
        ...

    @property
    def special_tokens(self) -> Collection[str]:
        """How the tokens are spelled that an answer's text leaves out."""
        return ()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a text.

        Raises:
            ForetokenError: If the text cannot be made into tokens.
        """
        ...

    def encode_chat(self, messages: Messages, tools: Tools = ()) -> list[int]:
        """The tokens of a conversation, up to where the answer begins.

        Args:
            messages: The turns.
            tools: Functions that the model is told of.

        Raises:
            ForetokenError: If the model has no chat template, or it does not take these messages.
        """
        raise RequestError("This model has no chat template: give the prompt as one string instead of messages.")

    def batch_encoder(self) -> BatchEncoder:
        """A function that makes tokens of many texts, with no special ones, and may run in another thread."""
        return lambda texts: [self.encode(text, add_special_tokens=False) for text in texts]

    def detokenizer(self, prompt: Sequence[int], skip_special_tokens: bool = True) -> Detokenizer:
        """Gives the text of an answer to a prompt."""
        ...

    def spelled(self, token: int) -> bytes:
        """The bytes that a token stands for after another one, half a character maybe; a special one is spelled out."""
        detokenizer = self.detokenizer([token], skip_special_tokens=False)
        return (detokenizer.push(token) + detokenizer.flush()).encode()


@dataclass(frozen=True)
class Request:
    """One answer to be given.

    Args:
        target: The model, which chooses tokens as the request says.
        prompt: Token ids.
        max_new_tokens: The most tokens to add.
        stop_tokens: Tokens that end the answer.
        stop: Asked after every token, with all of them; true ends the answer. None if there is nothing to ask.
    """

    target: Target
    prompt: list[int]
    max_new_tokens: int
    stop_tokens: frozenset[int] = frozenset()
    stop: Callable[[Sequence[int]], bool] | None = None

    def steps(self, drafter: Drafter | None, budget: Budget | None = None) -> Iterator[Step]:
        """Answer, a step at a time; see ``decode``."""
        return decode(
            self.target,
            drafter,
            self.prompt,
            max_new_tokens=self.max_new_tokens,
            stop_tokens=self.stop_tokens,
            stop=self.stop,
            budget=budget,
        )


class Engine(Tokens, Helpers, Protocol):
    """A model in the hands of a library. An engine may inherit from this class, for what is the same in most.

    Attributes:
        name: What the engine is called, such as "transformers".
        max_length: The most tokens of prompt and answer together. None means no limit.
        honours: The fields of ``Sampling`` that its targets choose by; others are refused.
        own_options: Names of options that ``prepare`` takes beside those of every engine.
        model: The library's own object.
        tokenizer: Likewise; None if the library has none.
    """

    name: str
    max_length: int | None = None
    honours: frozenset[str] = frozenset({"temperature", "seed"})
    own_options: frozenset[str] = frozenset()
    model: Any = None
    tokenizer: Any = None

    @property
    def cost_key(self) -> str:
        """Tells apart what makes forwards cost differently: the model's shape, dtype, device, threads and versions."""
        ...

    @property
    def dtype(self) -> str:
        """What the weights are kept in, such as "bfloat16"."""
        return self.name

    @property
    def exact(self) -> bool:
        """Whether the scores of drafted rows are those of plain decoding in every bit, so that no rounding shows."""
        return False

    def with_exact(self, exact: Exact) -> Engine:
        """The same model with another setting of exactness. This implementation is for engines that have no choice.

        Raises:
            ForetokenError: If ``exact`` is no such setting, or it is True and cannot be kept.
        """
        if check_exact(exact) is True and not self.exact:
            raise RequestError(f"The {self.name} engine cannot be exact: leave exact out.")
        return self

    @property
    def self_test(self) -> SelfTest:
        """What the engine's self-test of exactness finds for this model on this machine.

        Raises:
            ForetokenError: If there is none, or the model cannot be exact.
        """
        raise RequestError(f"The {self.name} engine has no self-test of exactness.")

    def grammar_tokenizer(self) -> Any:
        """The tokens as llguidance's ``LLTokenizer``, by which grammars and JSON schemas keep answers to a form.

        Raises:
            ForetokenError: If the engine has none.
            ModuleNotFoundError: If llguidance is missing.
        """
        raise RequestError(f"The {self.name} engine follows no grammar or schema: leave it out.")

    def settle_threads(self) -> None:
        """Let the whole process compute with as many threads as suit the model; commands ask for it."""
        return

    def prepare(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        max_new_tokens: int | None = None,
        own: Mapping[str, Any] = NOTHING,
    ) -> Request:
        """Prepare one answer. Settings that ``sampling`` leaves open follow the model's own.

        This implementation is for engines whose models have no settings of their own.

        Args:
            prompt: Token ids.
            sampling: How tokens are chosen.
            max_new_tokens: The most tokens to add. If None, the model's own limit or ``DEFAULT_NEW_TOKENS``.
            own: Options of this engine, named in ``own_options``.

        Raises:
            ForetokenError: If the engine cannot honour a setting, or the prompt leaves no room for an answer.
        """
        for name in sampling.given:
            if name not in self.honours:
                raise RequestError(f"The {self.name} engine does not choose tokens by {name}: leave it out.")
        seed = random.getrandbits(63) if sampling.seed is None else sampling.seed
        target = self.target(sampling.temperature or 0.0, seed)
        return Request(target, list(prompt), max_new_tokens or DEFAULT_NEW_TOKENS)

    def target(self, temperature: float = 0.0, seed: int = 0) -> Target:
        """The model with a cache of its own, which chooses by temperature and seed alone: to measure with."""
        ...
