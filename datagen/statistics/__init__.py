"""Statistics of instruction data: lengths, verbs and their objects."""
