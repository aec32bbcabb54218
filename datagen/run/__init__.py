"""Runs over records: sessions, output files, dry runs and progress."""
