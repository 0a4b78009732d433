"""The version of this package, which checkpoints and results hold."""

__version__ = "0.2.0"
