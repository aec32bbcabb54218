"""Reports of finished or running runs: curves, answers, settings and times on one page."""
