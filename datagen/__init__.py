"""Data generation: instructions, translation, ranking, benchmarks, the embedded data. Imports no torch."""
