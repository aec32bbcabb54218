"""Self-Instruct: seed tasks, the form that new tasks have, and which are kept."""
