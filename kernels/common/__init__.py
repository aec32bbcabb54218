"""Shared by the kernels: building C++, recording calls, vector headers, timing."""
