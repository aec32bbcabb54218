"""Multiple-choice evaluation: the room for its tasks, scoring and reports, which are not built yet."""
