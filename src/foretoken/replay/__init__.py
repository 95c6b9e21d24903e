"""Recorded answers played back without a model: what a drafter gains on them, and which settings gain the most."""
