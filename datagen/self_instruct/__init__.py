"""Self-Instruct: seed tasks, the task format, and the filters for new tasks."""
