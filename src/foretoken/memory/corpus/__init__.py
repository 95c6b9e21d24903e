"""Build a background corpus: tokens to the disk first, then, part by part, the counts of what followed every context.

Neither takes memory in proportion to the corpus, and a build that is stopped at any moment, by kill -9 or a full disk,
goes on where it stopped when it is called again; the store comes out the same to the byte.
"""

from __future__ import annotations

from foretoken.memory.corpus.build import build, build_from
from foretoken.memory.corpus.partial import State
from foretoken.memory.corpus.sources import Documents, File, Piece, Source

__all__ = ["Documents", "File", "Piece", "Source", "State", "build", "build_from"]
