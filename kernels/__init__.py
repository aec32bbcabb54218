"""The performance-critical mathematics, one folder per operation: definition, reference, fast versions, bench.

`kernels` is also the name of a PyPI package that transformers probes for. While our version is 0.1.x, here and in the
distribution's metadata, transformers takes it for one too old to use. Keep it there.
"""

__version__ = "0.1.0"
