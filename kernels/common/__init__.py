"""What the kernels share: building C++, recorded calls, vector headers, timing."""
