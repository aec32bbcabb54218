"""The proof on a GPU: stages of measured cases, each stage in a process of its own, and the table of their results."""
