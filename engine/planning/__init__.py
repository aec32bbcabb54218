"""Will it fit: memory, disk and time of a stage, before it starts."""
