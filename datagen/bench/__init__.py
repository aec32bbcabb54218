"""Benchmarks of datagen: API client, ROUGE-L filter, root verbs."""
