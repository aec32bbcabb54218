"""Translate records: texts in and out, long texts in chunks, benchmark items field by field."""
