"""Rankings by a chat model: the form they have, and what they say about their maker."""
