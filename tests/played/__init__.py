"""A played GPU: tensors on cuda:0 that are computed on the CPU, and the engine run on it."""
