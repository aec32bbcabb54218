"""Multiple-choice evaluation: benchmark data, named protocols, scoring over a tree of shared prefixes, and reports."""
