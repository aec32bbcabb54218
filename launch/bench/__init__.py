"""Benchmarks and comparisons of whole jobs."""
