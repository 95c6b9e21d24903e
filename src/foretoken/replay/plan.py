"""What to run: a job for each file, drafter and budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from foretoken.core.errors import ForetokenError
from foretoken.drafters import TEXT_DRAFTERS, AdaptiveNgram, NgramMixer, PromptLookupDrafter, recipe_of
from foretoken.replay.read import Reading
from foretoken.replay.score import Job
from foretoken.texts import open_unpacked

MAKE = {"ngram": NgramMixer, "anpd": AdaptiveNgram, "prompt-lookup": PromptLookupDrafter}


def make_jobs(
    files: Sequence[Path] | Mapping[Path, Path],
    drafters: Sequence[str] | None,
    budgets: Sequence[int],
    trees: bool,
    reading: Reading,
    background: str | None = None,
) -> list[Job]:
    """A job for each file, drafter and budget.

    Args:
        files: What to replay; a mapping says where to read what a name stands for.
        drafters: By name; all where None.
        budgets: Tokens to draft for each step.
        trees: Whether the target verifies trees.
        reading: Which items, and how.
        background: The folder of the corpus that "ngram" drafts from, or None.

    Raises:
        ForetokenError: If a file cannot be read or a drafter is unknown.
    """
    places = dict(files) if isinstance(files, Mapping) else {path: path for path in files}
    for place in places.values():
        with open_unpacked(place):
            pass  # one that cannot be read is refused before any is replayed
    names = list(dict.fromkeys(drafters or TEXT_DRAFTERS))
    for name in names:
        if name != "none" and name not in TEXT_DRAFTERS:
            recipe_of(name)
            raise ForetokenError(f"The drafter {name!r} needs a model that runs, and there is none here.")
    times = Counter(path.name for path in places)
    labels = {path: path.name if times[path.name] == 1 else str(path) for path in places}
    return [
        Job(str(place), labels[path], name, MAKE.get(name), size, trees, reading, background)
        for path, place in places.items()
        for name in names
        for size in dict.fromkeys(budgets)
    ]
