"""Self-contained HTML pages of what was measured."""
