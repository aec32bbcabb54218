"""Scoring: build documents, compute the log-likelihoods of their choices, and turn these into metrics."""
