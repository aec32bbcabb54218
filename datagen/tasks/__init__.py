"""Tasks with checkable answers, made from a language kit."""
