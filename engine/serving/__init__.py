"""Serving: requests that come at any time share one running batch, and their tokens go out as they are sampled."""
