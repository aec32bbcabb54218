"""Flags in, lines out, signals."""
