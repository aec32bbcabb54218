"""The hot operations, one folder each: definition, reference, C++ and Triton, bench.

`kernels` is also a package on PyPI that transformers looks for. At version 0.1.x, here and in the distribution's
metadata, transformers takes ours for one too old to use: keep it there.
"""

__version__ = "0.1.0"
