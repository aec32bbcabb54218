"""Import what training imports lazily, and find out which DeepSpeed operators can be built, before ranks are forked.

For the server process alone: in a test process these imports would take seconds and serve nothing.
"""

import deepspeed
import torch._dynamo.repro.after_dynamo
import torch._inductor.compile_fx
import torch.utils.cpp_extension
import torch.utils.tensorboard  # noqa: F401

deepspeed.ops.__compatible_ops__  # noqa: B018  the first access finds them out
