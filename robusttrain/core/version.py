"""The version of this package, as checkpoints and results have it."""

__version__ = "0.2.0"
