"""Benchmarks of datagen: the client, the filter, the root verbs."""
