"""Make tasks with checkable answers, wrong answers, splits and benchmarks from a language kit."""
