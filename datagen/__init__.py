"""Data generation: instructions, translations, rankings, benchmarks and embedded data. Does not import torch."""
