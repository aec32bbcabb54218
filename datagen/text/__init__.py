"""Analyze text: words, numbers, language, near duplicates, and faults of translations."""
