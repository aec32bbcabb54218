"""Prompts in, responses out: batched decoding over a paged key/value cache."""
