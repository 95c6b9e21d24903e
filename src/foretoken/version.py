"""The version, on its own so that all parts can read it, installed or not."""

__version__ = "0.1.0"
