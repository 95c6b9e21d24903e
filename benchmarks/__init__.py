"""What measures Foretoken itself: the figures in the documentation, a program for each table that has no command.

Run from the root of a clone, for example ``python -m benchmarks.latency``; ``make bench`` runs them all.
"""
