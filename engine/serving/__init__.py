"""Serve a model: requests join one running batch at any time, and tokens are sent as they are sampled."""
