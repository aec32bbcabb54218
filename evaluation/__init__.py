"""Multiple-choice evaluation: benchmarks as data, named protocols, scoring by shared prefixes, records and reports."""
