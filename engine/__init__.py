"""The engine: models, packing, generation, losses, the three trainers. Importing the package itself imports nothing else."""

__version__ = "0.1.0"
