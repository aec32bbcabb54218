"""Benchmark data: read records, check them, clean their texts, and look up prompt words by language."""
