"""Translation of records: texts in and out, long ones in chunks, benchmarks field by field."""
