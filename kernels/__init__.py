"""The hot mathematics, one folder an operation: definition, reference, fused, bench.

`kernels` is also the name of a package on PyPI that transformers probes for. transformers takes ours for a version too
old to use as long as it says 0.1.x, here and in the distribution's metadata: keep it there.
"""

__version__ = "0.1.0"
