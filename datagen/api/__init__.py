"""Asking a chat API: requests, limits, prices, and the journal of what was paid for."""
