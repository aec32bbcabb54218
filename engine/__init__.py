"""The engine: models, packing, generation, losses, the four trainers. The package itself imports nothing."""

__version__ = "0.1.0"
