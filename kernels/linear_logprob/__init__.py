"""Log-probability, logsumexp and entropy of a linear layer's softmax, without the logits of the whole batch."""

from kernels.linear_logprob.blocked import linear_logprob
from kernels.linear_logprob.reference import linear_logprob_reference

__all__ = ["linear_logprob", "linear_logprob_reference"]
