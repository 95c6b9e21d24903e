"""Recipes: a drafter's name, its options, what it needs, and how it is made for one answer."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from types import NoneType
from typing import Any, ClassVar, get_args, get_type_hints

from foretoken.core.contracts import Drafter, Heads, Helpers, Need, Rescorer, RewindableTarget, Target, require
from foretoken.core.costs import CostCurve
from foretoken.core.errors import RequestError
from foretoken.core.numbers import real, whole
from foretoken.ngrams.shared import SharedNgrams


@dataclass(frozen=True)
class Parts:
    """What the drafter of one answer can be made of. ``of`` collects it from an engine.

    Args:
        target: The target that verifies the drafts.
        ngrams: Gives what the answer's namespace shares. Only a drafter that remembers calls it.
        costs: Seconds of a forward over n rows. Empty if unknown.
        references: Documents that the answer may quote or edit, as tokens.
        draft_target: Gives a smaller model, by its name or as an object, as a target that chooses as the larger one
            does. None if the engine runs no second model.
        exit_target: Gives the first layers of the target's model as a target on the same cache; how many, or None for a
            third of them. None if the engine cannot leave a forward early.
        heads: Gives the trained heads of the target's model. None if it has none.
        rescorer: Gives the language model that was trained beside the heads. None if there is none.
    """

    target: Target
    ngrams: Callable[[], SharedNgrams] = SharedNgrams
    costs: CostCurve = field(default_factory=CostCurve)
    references: Sequence[Sequence[int]] = ()
    draft_target: Callable[[Any], RewindableTarget] | None = None
    exit_target: Callable[[int | None], RewindableTarget] | None = None
    heads: Callable[[], Heads] | None = None
    rescorer: Callable[[], Rescorer] | None = None

    @classmethod
    def of(
        cls,
        helpers: Helpers,
        target: Target,
        ngrams: Callable[[], SharedNgrams] = SharedNgrams,
        costs: CostCurve | None = None,
        references: Sequence[Sequence[int]] = (),
    ) -> Parts:
        """The parts that an engine has.

        Args:
            helpers: The engine, or what it has to help a drafter.
            target: As ``Parts``.
            ngrams: As ``Parts``.
            costs: As ``Parts``. If None, they are unknown.
            references: As ``Parts``.
        """
        draft_target, exit_target, heads = helpers.draft_target, helpers.exit_target, helpers.heads
        return cls(
            target,
            ngrams,
            CostCurve() if costs is None else costs,
            references,
            None if draft_target is None else lambda model: draft_target(model, target),
            None if exit_target is None else lambda layer: exit_target(layer, target),
            None if heads is None else lambda: heads(target),
            helpers.rescorer,
        )


class Recipe:
    """How to make one kind of drafter.

    A recipe is a frozen dataclass whose fields are the drafter's own options. The first line of its docstring says in
    one sentence what the drafter does; help texts and docs show it.

    Attributes:
        name: What doors call the drafter.
        calibrated: Whether its probabilities can be counted on. If so the budget is what pays, otherwise fixed.
        remembers: Whether it drafts from references, a background corpus and earlier answers.
        runs_model: Whether it runs a model of its own to draft.
        needs: What it asks the target's scores for; see ``Drafter``.
    """

    name: ClassVar[str]
    calibrated: ClassVar[bool] = False
    remembers: ClassVar[bool] = False
    runs_model: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        types = option_types(type(self))
        for option in options_of(type(self)):
            value = _checked(option, getattr(self, option.name), types[option.name])
            object.__setattr__(self, option.name, value)

    def __str__(self) -> str:
        """The text that ``parse_recipe`` reads; options that have their default are left out."""
        given = [(option, getattr(self, option.name)) for option in options_of(type(self))]
        texts = [f"{option.name}={_text(value)}" for option, value in given if value != option.default]
        if not texts:
            return self.name
        line = io.StringIO()
        csv.writer(line).writerow(texts)  # with its line's end, so that one within a text is quoted
        return f"{self.name}:{line.getvalue().removesuffix(csv.excel.lineterminator)}"

    def check(self, parts: Parts) -> None:
        """Refuse, before any prompt, what the drafter cannot be made of; nothing of it is made.

        Raises:
            ForetokenError: If it cannot draft for this target.
        """
        require(repr(self.name), self.needs, parts.target)

    def prepare(self) -> None:
        """Do in advance what the first ``make`` would do, such as compiling."""
        if "top" in self.needs:
            from foretoken.ngrams.likeliest import compile_likeliest  # only now: numba takes time to import

            compile_likeliest()

    def make(self, parts: Parts) -> Drafter:
        """A drafter for one answer.

        Raises:
            ForetokenError: As ``check``.
        """
        raise NotImplementedError


def option(default: Any, *, least: float) -> Any:
    """A field of a recipe that holds a number from ``least`` on."""
    return field(default=default, metadata={"least": least})


def options_of(recipe: type[Recipe]) -> tuple[Field[Any], ...]:
    """The options of a recipe."""
    return fields(recipe)  # type: ignore[arg-type]  # every recipe is a dataclass


def sees_only_tokens(recipe: Recipe | type[Recipe]) -> bool:
    """Whether the drafter asks no model for anything, so that replaying recorded answers can judge it."""
    return not recipe.needs and not recipe.runs_model


def summary(recipe: type[Recipe]) -> str:
    """What the drafter does, in one sentence."""
    return (recipe.__doc__ or "").partition("\n")[0]


def parse_recipe(text: str, recipes: Mapping[str, type[Recipe]]) -> Recipe:
    """The recipe that a text such as "early-exit:layer=4" names.

    Options are separated by commas. One with a comma in it is quoted as a whole, as in a CSV file.

    Args:
        text: A name, or a name and its options: "name:option=value,option=value".
        recipes: All recipes, by name.

    Raises:
        ForetokenError: If there is no such recipe, it has no such option, or a value does not fit.
    """
    name, _, given = text.partition(":")
    if name not in recipes:
        raise RequestError(f"There is no drafter named {name!r}: choose one of {', '.join([*recipes, 'none'])}.")
    recipe, types = recipes[name], option_types(recipes[name])
    known = {option.name: option for option in options_of(recipe)}
    values: dict[str, Any] = {}
    for part in _split(given):
        key, equals, value = part.partition("=")
        if key not in known:
            choice = f"choose one of {', '.join(known)}" if known else "it has none"
            raise RequestError(f"The drafter {name!r} has no option {key!r}: {choice}.")
        if not equals or key in values:
            raise RequestError(f"{text!r} does not say the option {key} once: write {_form(name, key, types)!r}.")
        values[key] = _read(value, types[key])
    for key, one in known.items():
        if one.default is MISSING and key not in values:
            raise RequestError(f"The drafter {name!r} needs the option {key}: write {_form(name, key, types)!r}.")
    return recipe(**values)


def option_types(recipe: type[Recipe]) -> dict[str, tuple[type, ...]]:
    """The types that each option takes."""
    hints = get_type_hints(recipe)
    return {option.name: get_args(hints[option.name]) or (hints[option.name],) for option in options_of(recipe)}


def _split(text: str) -> list[str]:
    """The options that a text separates by commas."""
    try:
        return next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise RequestError(f"The options {text!r} cannot be read: {error}.") from error


def _form(name: str, key: str, types: Mapping[str, tuple[type, ...]]) -> str:
    """How an option is written."""
    return f"{name}:{key}={'NUMBER' if int in types[key] or float in types[key] else 'NAME'}"


def _read(text: str, types: tuple[type, ...]) -> Any:
    """The value that a text stands for; what is wrong with it is said by ``_checked``."""
    if NoneType in types and str not in types and text == "none":
        return None
    if bool in types:
        return {"true": True, "false": False}.get(text, text)
    for number in (int, float):
        if number in types:
            try:
                return number(text)
            except ValueError:
                return text
    return text


def _text(value: Any) -> str:
    """The text that ``_read`` takes; a loaded model, which no text names, is told by its class."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int | float) else type(value).__name__


def _checked(option: Field[Any], value: Any, types: tuple[type, ...]) -> Any:
    """A value of an option.

    Raises:
        ForetokenError: If it has another type, or is too small.
    """
    if Any in types or (value is None and NoneType in types):
        return value
    if int in types:
        return whole(option.name, value, option.metadata.get("least"))
    if float in types:
        number, least = real(option.name, value), option.metadata.get("least")
        if least is not None and number < least:
            raise RequestError(f"{option.name} is {value}: give a number from {least} on.")
        return number
    if not isinstance(value, types):
        raise RequestError(f"{option.name} is {value!r:.100}: give {'true or false' if bool in types else 'a text'}.")
    return value
