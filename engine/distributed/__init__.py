"""Ranks: how they meet, reduce, and notice a hang."""
