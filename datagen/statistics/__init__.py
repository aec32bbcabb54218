"""Compute statistics of instruction data: lengths, root verbs and their objects."""
