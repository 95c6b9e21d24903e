"""Engines with a loop of their own, which take only our drafter."""
