"""What to run: a job for each file, drafter and budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from foretoken.core.errors import RequestError
from foretoken.drafters import TEXT_DRAFTERS, Recipe, recipe_of
from foretoken.drafters.recipe import sees_only_tokens
from foretoken.replay.job import Job
from foretoken.replay.read import Reading
from foretoken.texts import open_unpacked


def make_jobs(
    files: Sequence[Path] | Mapping[Path, Path],
    drafters: Sequence[str | Recipe] | None,
    budgets: Sequence[int],
    trees: bool,
    reading: Reading,
    background: str | None = None,
) -> list[Job]:
    """A job for each file, drafter and budget.

    Args:
        files: What to replay; a mapping says where to read what a name stands for.
        drafters: Names or recipes. If None, all that see only tokens.
        budgets: Tokens to draft for each step.
        trees: Whether the target verifies trees.
        reading: Which items, and how.
        background: The folder of the corpus to draft from, or None.

    Raises:
        ForetokenError: If a file cannot be read or a drafter is unknown, or needs a model that runs.
    """
    places = dict(files) if isinstance(files, Mapping) else {path: path for path in files}
    for place in places.values():
        with open_unpacked(place):
            pass  # one that cannot be read is refused before any is replayed
    recipes = list(dict.fromkeys(map(recipe_of, drafters or TEXT_DRAFTERS)))
    for recipe in recipes:
        if recipe is not None and not sees_only_tokens(recipe):
            raise RequestError(
                f"The drafter {recipe.name!r} needs a model that runs, and answers are only recorded here: "
                f"choose one of {', '.join([*TEXT_DRAFTERS, 'none'])}."
            )
    times = Counter(path.name for path in places)
    labels = {path: path.name if times[path.name] == 1 else str(path) for path in places}
    return [
        Job(str(place), labels[path], str(recipe or "none"), recipe, size, trees, reading, background)
        for path, place in places.items()
        for recipe in recipes
        for size in dict.fromkeys(budgets)
    ]
