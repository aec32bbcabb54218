"""Written GGUF files in llama.cpp: the same token ids, and logits as close as its arithmetic allows.

    pip install llama-cpp-python==0.3.36     # compiles for about ten minutes
    python -m pytest -m slow tests/real/test_llama_cpp.py -s

llama.cpp keeps keys and values in float16, and rounds activations to 8 bits before it multiplies them with q8_0.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.batch import PackedBatch
from engine.text.tokenizer import load_tokenizer
from launch import convert
from tests.real.models import TEXTS

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1200)]
llama_cpp = pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python==0.3.36")
CONTEXT = 128


@pytest.fixture(autouse=True)
def plain_kernels(monkeypatch):
    """Turn off the kernels for repacked weights: on some virtual machines they end with an illegal instruction."""
    library = llama_cpp.llama_cpp
    defaults = library.llama_model_default_params

    def without_repacking():
        params = defaults()
        params.use_extra_bufts = False
        return params

    monkeypatch.setattr(library, "llama_model_default_params", without_repacking)


@pytest.mark.parametrize(("quantisation", "relative"), [("f16", 1e-2), ("q8_0", 0.15)])
def test_llama_cpp_reads_what_we_write(loaded, tmp_path, quantisation, relative):
    file = tmp_path / "model.gguf"
    convert.run(["--to-gguf", str(loaded.path), "--output", str(file), "--quantisation", quantisation])
    tokenizer = load_tokenizer(loaded.path)
    peer = llama_cpp.Llama(str(file), n_ctx=CONTEXT, logits_all=True, n_threads=1, verbose=False)
    errors = []
    for text in TEXTS:
        tokens = tokenizer(text)["input_ids"][:CONTEXT]
        if len(tokens) < CONTEXT:
            assert peer.tokenize(text.encode(), add_bos=True, special=False) == tokens, text
        if not tokens:
            continue
        peer.reset()
        peer.eval(tokens)
        errors.append(relative_error(np.asarray(peer.scores[: len(tokens)]), our_logits(loaded.model, tokens)))
    print(f"\n{loaded.name} {quantisation}: largest error of logits {max(errors):.1e}, of the largest logit of a text")
    assert max(errors) < relative
    peer.close()


@torch.no_grad()
def our_logits(model, tokens: list[int]) -> np.ndarray:
    batch = PackedBatch.from_sequences([tokens], torch.device("cpu"))
    h_TD = model.norm(model.run(model.embed(batch), batch, 0, model.num_layers))
    return (h_TD @ model.head_weight.T).numpy()


def relative_error(peer: np.ndarray, ours: np.ndarray) -> float:
    return float(np.abs(peer - ours).max() / np.abs(ours).max())
