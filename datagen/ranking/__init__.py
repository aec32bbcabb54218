"""Rankings by a chat model: their format, and a report on the judge's biases."""
