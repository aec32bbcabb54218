"""Chat API client: requests, rate limits, prices, and the journal of paid answers."""
