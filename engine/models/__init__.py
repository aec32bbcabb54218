"""BLOOM, the LLaMA family, Gemma 3, Cohere 2 and Apertus behind one interface, in the Hugging Face layout.

A model has `config, num_layers, hidden_size, num_heads, num_kv_heads, head_size, vocab_size`, `max_length` (the longest
sequence it serves in tokens, None without a limit), `layers`, `final_norm`, and
    embed(batch) -> h_TD        run(h_TD, batch, start, stop, attend=None) -> h_TD        norm(h_TD) -> h_TD
    head_weight -> W_VD         run_layers(layers, h_TD, batch, attend=None) -> h_TD, for blocks held elsewhere

A new family is one model file (a block and a subclass of Decoder), its weight names in names.py, its class in hf.py and
a test. A fast decode path in fused.py is optional.
"""

from engine.models.attend import Attend
from engine.models.bloom import Bloom
from engine.models.decoder import Decoder
from engine.models.hf import build_model, load_config, load_model, load_score_weight, save_model
from engine.models.length_limit import LengthLimit, length_limit
from engine.models.llama import Llama

__all__ = [
    "Attend",
    "Bloom",
    "Decoder",
    "LengthLimit",
    "Llama",
    "build_model",
    "length_limit",
    "load_config",
    "load_model",
    "load_score_weight",
    "save_model",
]
