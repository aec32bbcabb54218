"""From documents to the log-likelihoods of their choices, and metrics of them."""
