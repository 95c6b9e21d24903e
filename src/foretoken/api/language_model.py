"""Text in, text out: ``foretoken.load("...").generate("...")``."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Unpack, cast, overload

from foretoken.api.answer import Result, Stream
from foretoken.api.grammar import Grammars, Processor
from foretoken.api.options import Options, Prompt, split_options
from foretoken.core.budget import AdaptiveBudget
from foretoken.core.contracts import Drafter, Need, Step
from foretoken.core.costs import CostCurve
from foretoken.core.errors import ModelError, RequestError
from foretoken.core.numbers import whole
from foretoken.drafters import DEFAULT_DRAFTER, RECIPES, Parts, Recipe, recipe_of
from foretoken.engines import engine_of, load_engine
from foretoken.engines.base import FOUND, Engine, Exact, Messages, Request, check_exact
from foretoken.engines.stop_strings import StopStrings, read_stop_strings
from foretoken.memory.costs import costs_of
from foretoken.memory.history import History
from foretoken.memory.namespace import Namespace
from foretoken.memory.namespaces import Namespaces, check_namespace
from foretoken.memory.prefixes import Prefixes
from foretoken.texts import is_text

DEFAULT_NAMESPACE = "default"


class LanguageModel:
    """A language model with drafting.

    Args:
        model: An engine, or a causal language model of transformers whose cache can rewind.
        tokenizer: The tokenizer of a model of transformers. An engine has its own.
        drafter: The drafter used if a call names none, as ``Options`` has it.
        background: A corpus to draft from: "general", which comes with the package, the folder of a store that
            ``foretoken corpus build`` made, or None.
        history: Keeps answers between runs. If None, they are forgotten with this object.
        speculator: The folder of heads trained on the model's states; "auto" for the folder "speculator" within the
            model's own, if there is one; None for none. An engine has its own.
        exact: Whether drafted logits must be plain decoding's in every bit; see ``load``. An engine has its own.

    Attributes:
        prefixes: If set, prompts are read in blocks, and what was computed of their beginnings is kept there.

    Raises:
        ForetokenError: If the model cannot be drafted for, the drafter is unknown, or the background corpus does not
            belong to this tokenizer.
    """

    def __init__(
        self,
        model: Engine | Any,
        tokenizer: Any = None,
        drafter: str | Recipe | Drafter | None = DEFAULT_DRAFTER,
        *,
        background: str | Path | None = "general",
        history: History | None = None,
        speculator: str | PathLike[str] | None = FOUND,
        exact: Exact = "auto",
    ) -> None:
        for name, is_given in (("speculator", speculator != FOUND), ("setting of exact", exact != "auto")):
            if tokenizer is None and is_given:
                raise RequestError(f"An engine has a {name} of its own: leave it out here.")
        self.engine: Engine = model if tokenizer is None else engine_of(model, tokenizer, speculator, exact)
        self._with_exact: dict[Exact, Engine] = {}
        self.drafter = recipe_of(drafter)
        if background not in (None, "general"):
            require_memory(self.drafter, "background")
        if self.drafter is not None:
            self.drafter.check(Parts.of(self.engine, self.engine.target()))
        self.memories = Namespaces(self.engine, background, history)
        self.grammars = Grammars(self.engine)
        self.prefixes: Prefixes | None = None

    @property
    def model(self) -> Any:
        """The engine's own model, such as a ``PreTrainedModel``."""
        return self.engine.model

    @property
    def tokenizer(self) -> Any:
        """The engine's own tokenizer, such as a ``PreTrainedTokenizerBase``."""
        return self.engine.tokenizer

    @property
    def costs(self) -> CostCurve:
        """What the model's forwards cost on this machine. The first use measures it, in about a second."""
        return costs_of(self.engine.cost_key, self.engine.target)

    @property
    def budget(self) -> AdaptiveBudget:
        """A budget as the next answer of the default namespace gets it."""
        return self.memories.of(DEFAULT_NAMESPACE).new_budget(self.costs)

    @overload
    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Result: ...
    @overload
    def generate(self, prompt: list[str] | list[Messages], **options: Unpack[Options]) -> list[Result]: ...

    def generate(
        self, prompt: Prompt | list[str] | list[Messages], **options: Unpack[Options]
    ) -> Result | list[Result]:
        """Answer a prompt, a conversation, or a list of either, one after the other.

        A string is continued as it stands; messages, ``{"role": ..., "content": ...}``, go through the tokenizer's chat
        template. See ``Options`` for the keywords.

        Raises:
            ForetokenError: If the prompt is empty or too long, or an option is out of its range.
        """
        if isinstance(prompt, str) or len(prompt) == 0 or isinstance(prompt[0], Mapping):
            return self._answer(cast(Prompt, prompt), options)
        prompts = cast(list[Prompt], prompt)
        for one in prompts:
            self.encode(one)  # so that a bad one is found before the first is answered
        return [self._answer(one, options) for one in prompts]

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Stream:
        """Answer a prompt or a conversation chunk by chunk; the caller may stop at any.

        Raises:
            ForetokenError: As ``generate``, before the first chunk.
        """
        recipe = recipe_of(options.pop("drafter", self.drafter))
        references = self._encode_all(options.pop("references", None) or ())
        if references:
            require_memory(recipe, "references")
        namespace = options.pop("namespace", DEFAULT_NAMESPACE)
        check_namespace(namespace)
        budget = options.pop("budget", None)
        engine = self._engine(options.get("exact"))
        request = self.prepare(prompt, **options)
        prefix = None if self.prefixes is None else self.prefixes.of(namespace)
        if prefix is not None and hasattr(request.target, "reuse"):
            request.target.reuse(prefix)
        remembered = self.memories.of(namespace)
        drafter, learning = None, None
        if recipe is not None:
            costs = costs_of(engine.cost_key, engine.target) if recipe.calibrated else CostCurve()
            if recipe.calibrated and budget is None:
                if engine.exact == self.engine.exact:
                    learning = remembered.new_budget(costs)
                else:  # whose steps have other costs than those that the namespace learned of
                    budget = AdaptiveBudget(costs=costs)
            parts = Parts.of(engine, request.target, lambda: remembered.ngrams, costs, references)
            drafter = recipe.make(parts)
        steps = self._kept(request.steps(drafter, budget or learning), remembered, drafter, learning)
        provides: frozenset[Need] = getattr(request.target, "provides", frozenset())
        detokenizer = self.engine.detokenizer(request.prompt)
        return Stream(steps, detokenizer, len(request.prompt), engine.exact, provides, prefix)

    def _engine(self, exact: Exact | None) -> Engine:
        """The engine with a setting of exactness; its own if None.

        Raises:
            ForetokenError: If it cannot be exact, or there is no such setting.
        """
        if exact is None:
            return self.engine
        check_exact(exact)
        if exact not in self._with_exact:
            try:
                self._with_exact[exact] = self.engine.with_exact(exact)
            except ModelError as error:  # it is this answer's setting that is at fault
                raise RequestError(str(error)) from error
        return self._with_exact[exact]

    def encode(self, prompt: Prompt, tools: Sequence[Mapping[str, Any]] | None = None) -> list[int]:
        """The token ids of a prompt, or of a conversation whose model may be told of functions.

        Raises:
            ForetokenError: If it is empty, a conversation meets a model without a chat template, or functions meet
                what is no conversation.
        """
        if not prompt:
            raise RequestError("The prompt is empty: give some text to continue.")
        if not isinstance(prompt, str):
            ids = self.engine.encode_chat(prompt, tools) if tools else self.engine.encode_chat(prompt)
        elif tools:
            raise RequestError("tools are for a chat template: give the prompt as messages.")
        elif is_text(prompt):
            ids = self.engine.encode(prompt)
        else:
            raise RequestError("The prompt holds bytes that are no text: give it as UTF-8.")
        vocab_size = self.engine.vocab_size
        if ids and max(ids) >= vocab_size:
            raise ModelError(
                f"The prompt has token {max(ids)}, and the model {vocab_size} tokens: its tokenizer is another's."
            )
        return ids

    def _encode_all(self, documents: Sequence[str]) -> list[list[int]]:
        if isinstance(documents, str) or not isinstance(documents, Iterable):
            raise RequestError(f"references is {reprlib.repr(documents)}: give a list of documents.")
        for text in documents:
            if not is_text(text):
                raise RequestError(f"A reference is {reprlib.repr(text)}, which is no text: give each as a string.")
        return [self.engine.encode(text, add_special_tokens=False) for text in documents if text]

    def _kept(
        self, steps: Iterator[Step], namespace: Namespace, drafter: Drafter | None, learning: AdaptiveBudget | None
    ) -> Iterator[Step]:
        """The steps as they come. The answer is kept once it is whole, and what its budget has learned in any case."""
        answer: list[int] = []
        try:
            for step in steps:
                answer += step.tokens
                if step.finish_reason is not None:
                    namespace.keep(answer, own=getattr(drafter, "memory", None))
                yield step
        finally:
            if learning is not None:
                namespace.hand_back(learning)
            self.memories.settle(namespace.name)

    def _form(self, grammar: str | None, json_schema: Mapping[str, Any] | None) -> Callable[[], Processor] | None:
        """Makes the processor of an answer that has to be of some form. None if it may be any text."""
        if grammar is not None and json_schema is not None:
            raise RequestError("An answer follows a grammar or a JSON schema, not both: leave one of them out.")
        if grammar is not None:
            return self.grammars.of_grammar(grammar)
        return None if json_schema is None else self.grammars.of_schema(json_schema)

    def _answer(self, prompt: Prompt, options: Options) -> Result:
        stream = self.stream(prompt, **options)
        for _ in stream:
            pass
        return stream.result

    def prepare(
        self,
        prompt: Prompt,
        *,
        stop: str | Sequence[str] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        exact: Exact | None = None,
        grammar: str | None = None,
        json_schema: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Request:
        """The request to the engine that a prompt and the options for choosing tokens come to.

        Raises:
            ForetokenError: As ``generate``.
        """
        limit = options.pop("max_new_tokens", None)
        if limit is not None and whole("max_new_tokens", limit) < 1:
            raise RequestError(f"max_new_tokens is {limit}: ask for at least 1 token.")
        form = self._form(grammar, json_schema)
        if form is not None:
            options["processors"] = (*(options.get("processors") or ()), form())
        sampling, own = split_options(self.engine, options)
        stops = read_stop_strings("stop", stop)
        request = self._engine(exact).prepare(self.encode(prompt, tools), sampling, limit, own)
        if stops:
            request = replace(request, stop=StopStrings(stops, self.engine, request.prompt, request.stop))
        return request


def load(
    model: str = "tiny",
    *,
    dtype: str = "auto",
    device: str | None = None,
    drafter: str | Recipe | Drafter | None = DEFAULT_DRAFTER,
    background: str | Path | None = "general",
    history: bool | str | Path | None = False,
    trust_remote_code: bool = False,
    speculator: str | PathLike[str] | None = FOUND,
    exact: Exact = "auto",
) -> LanguageModel:
    """A language model, ready to draft for.

    Args:
        model: A folder in the Hugging Face layout, a name on the hub, or "tiny", the model that comes with the package;
            or "toy", a model without weights that needs no other package.
        dtype: "float64", "float32", "bfloat16", "float16", or "auto" for what the weights are stored in.
        device: Where it runs, such as "cpu" or "cuda". If None, a GPU if there is one.
        drafter: What drafts if a call names nothing, as ``Options`` has it, such as "mixed", "early-exit:layer=4" or
            "draft-model:model=NAME", a smaller model of the same tokenizer that is named as ``model`` is.
        background: A corpus to draft from: "general", which comes with the package, the folder of a store that
            ``foretoken corpus build`` made, or None.
        history: File that keeps answers between runs, so that later ones are drafted from them. True for
            ``foretoken.memory.history.default_path()``; False or None to write nothing and forget them with the
            process. A file that cannot be used gets a warning and is left alone. Defaults to False.
        trust_remote_code: Whether code that comes with a model may run; read it first. Never asked for otherwise.
        speculator: The folder of heads trained on the model's states, as the drafter "speculator" needs them. "auto"
            for the folder "speculator" within the model's own, if there is one; "none" or None for none.
        exact: Whether a drafted row's logits must be plain decoding's in every bit, so that no rounding can change the
            text in any dtype. True insists. "auto" is exact where a self-test of this model on this machine passes and
            a plain step takes at most 5 % longer for it; ``Result.exact`` says which it was. False does not ask.

    Raises:
        ForetokenError: If there is no such model, it is no causal language model, it cannot rewind, it cannot be exact
            and ``exact`` is True, or the background corpus or the draft model is not for it.
    """
    drafter = recipe_of(drafter)  # so that what there is not is refused before a model is loaded
    if not isinstance(history, bool | str | PathLike | None):
        raise RequestError(f"history is {history!r}: give the path of a file, True for the user's own, or False.")
    kept = None if history is None or history is False else History(None if history is True else Path(history))
    if kept is not None:
        kept.check()
    engine = load_engine(model, dtype, device, trust_remote_code, speculator, exact)
    return LanguageModel(engine, drafter=drafter, background=background, history=kept)


def require_memory(recipe: Recipe | None, argument: str) -> None:
    """Refuse an argument that says what to draft from, if the drafter does not draft from it.

    Raises:
        ForetokenError: If it does not.
    """
    if recipe is None or not recipe.remembers:
        names = [name for name, known in RECIPES.items() if known.remembers]
        raise RequestError(
            f"{argument} is for the drafters {' and '.join(names)}, not for {str(recipe or 'none')!r}: "
            "leave one of the two out."
        )
