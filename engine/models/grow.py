"""Give a model rows for new tokens in its embedding and its head."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.models.decoder import Decoder
from engine.models.hf import empty_model

WAYS = ("mean", "ends")
_EMBEDDING, _HEAD = "embedding.weight", "head.weight"


def grow(model: Decoder, first_id: int, replaced: Sequence[Sequence[int]], way: str = "mean") -> Decoder:
    """Return a model whose tokens from `first_id` on have rows made from those of the old tokens that they replace.

    way: "mean" takes the mean of the old rows; "ends" the last one in the embedding (what a text ends with so far) and
    the first one in the head (what is predicted next), which differ only where the head is not tied. Rows are computed
    in float32 and kept in the model's dtype. All other weights are shared with `model`.
    """
    config = copy.deepcopy(model.config)
    config.vocab_size = max(model.vocab_size, first_id + len(replaced))
    state = dict(model.state_dict())
    for name in (_EMBEDDING, _HEAD):
        if name in state:
            state[name] = _grown(state[name], config.vocab_size, first_id, replaced, way, name)
    grown = empty_model(config, "the extended model")
    grown.load_state_dict(state, assign=True)
    return grown


def _grown(
    old_VD: Tensor, vocab_size: int, first_id: int, replaced: Sequence[Sequence[int]], way: str, name: str
) -> Tensor:
    new_VD = old_VD.new_empty(vocab_size, old_VD.shape[1])
    new_VD[: len(old_VD)] = old_VD
    for row_D, ids in zip(new_VD[first_id:], replaced):
        chosen = ids if way == "mean" else ids[-1:] if name == _EMBEDDING else ids[:1]
        row_D.copy_(old_VD[list(chosen)].float().mean(0))
    assert len(replaced) == 0 or torch.isfinite(new_VD[first_id : first_id + len(replaced)]).all()
    return new_VD
