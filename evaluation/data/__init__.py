"""Benchmark records: where they come from, how they are cleaned, and the words around them."""
