"""Map our weight names to Hugging Face's, and match a checkpoint strictly against a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import nn

from engine.base.errors import UserError

LISTED = 8  # names listed per kind of mismatch
SCORE = "score.weight"
LM_HEAD = "lm_head.weight"


class Table(NamedTuple):
    """The names of one family: our module names -> Hugging Face's. Some checkpoints have the prefix, some do not."""

    prefix: str
    outside_layers: dict[str, str]
    layer: str  # Hugging Face's name of our `layers.{i}`
    in_layer: dict[str, str]
    harmless: str  # leftovers of old versions: buffers without weights
    constants: Mapping[str, float] = {}  # in each layer: numbers that transformers stores beside the weights


BLOOM = Table(
    prefix="transformer.",
    outside_layers={
        "embedding": "word_embeddings",
        "embedding_norm": "word_embeddings_layernorm",
        "final_norm": "ln_f",
        "head": "lm_head",
    },
    layer="h.{i}",
    in_layer={
        "attention_norm": "input_layernorm",
        "qkv": "self_attention.query_key_value",
        "attention_out": "self_attention.dense",
        "mlp_norm": "post_attention_layernorm",
        "mlp_up": "mlp.dense_h_to_4h",
        "mlp_down": "mlp.dense_4h_to_h",
    },
    harmless=r"h\.\d+\.self_attention\.(scale_mask_softmax\.causal_mask|bias|masked_bias)",
)

LLAMA = Table(
    prefix="model.",
    outside_layers={
        "embedding": "embed_tokens",
        "final_norm": "norm",
        "head": "lm_head",
    },
    layer="layers.{i}",
    in_layer={
        "attention_norm": "input_layernorm",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "q_norm": "self_attn.q_norm",
        "k_norm": "self_attn.k_norm",
        "attention_out": "self_attn.o_proj",
        "mlp_norm": "post_attention_layernorm",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    },
    harmless=r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
)

GEMMA3 = LLAMA._replace(
    in_layer=LLAMA.in_layer
    | {
        "attention_out_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_out_norm": "post_feedforward_layernorm",
    }
)
COHERE2 = LLAMA._replace(in_layer=LLAMA.in_layer | {"norm": "input_layernorm"})
APERTUS = LLAMA._replace(
    in_layer=LLAMA.in_layer
    | {"attention_norm": "attention_layernorm", "mlp_norm": "feedforward_layernorm", "xielu": "mlp.act_fn"},
    constants={"mlp.act_fn.beta": 0.5, "mlp.act_fn.eps": -1e-6},  # xIELU's
)

TABLES = {
    "bloom": BLOOM,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3"), LLAMA),
    "gemma3_text": GEMMA3,
    "cohere2": COHERE2,
    "apertus": APERTUS,
}

# Where a model that also reads images keeps its language model, and what else it has.
NESTED_PREFIXES = ("language_model.model.", "model.language_model.", "language_model.")
OTHER_PARTS = r"(model\.)?(vision_tower|vision_model|visual|multi_modal_projector|mm_projector)\..*"


def hugging_face_name(table: Table, ours: str) -> str:
    """Return Hugging Face's name of one of our parameters, without the prefix."""
    module, _, leaf = ours.rpartition(".")
    if in_layer := re.fullmatch(r"layers\.(\d+)\.(\w+)", module):
        return f"{table.layer.format(i=in_layer[1])}.{table.in_layer[in_layer[2]]}.{leaf}"
    return f"{table.outside_layers[module]}.{leaf}"


def written_name(table: Table, ours: str) -> str:
    """Return the name a weight is written under: with the prefix, except for the language head."""
    name = hugging_face_name(table, ours)
    return name if name == LM_HEAD else table.prefix + name


def constants(table: Table, num_layers: int) -> dict[str, float]:
    """Return the constants of all layers by the names they are written under."""
    layers = (table.layer.format(i=i) for i in range(num_layers))
    return {f"{table.prefix}{layer}.{name}": value for layer in layers for name, value in table.constants.items()}


def match(where: str, model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Pair each parameter of the model with a stored name: {ours: stored}.

    shapes maps stored names to shapes. One UserError, which begins with `where`, lists missing and unused weights and
    wrong shapes. A tied model may be stored with only its head, which is then the embedding.
    """
    table = TABLES[model.config.model_type]
    stored: dict[str, str] = {}
    for name in shapes:
        stored.setdefault(_bare(table, name), name)
    if model.config.tie_word_embeddings and LM_HEAD in stored:
        stored.setdefault(hugging_face_name(table, "embedding.weight"), stored[LM_HEAD])
    wanted = {ours: hugging_face_name(table, ours) for ours, _ in model.named_parameters()}
    pairs = {ours: stored[name] for ours, name in wanted.items() if name in stored}

    expected = {ours: tuple(p.shape) for ours, p in model.named_parameters()}
    missing = [written_name(table, ours) for ours in wanted if ours not in pairs]
    used = set(pairs.values())
    unused = [n for n in shapes if n not in used and not _ignorable(table, n, model.config.tie_word_embeddings)]
    other_shape = [
        f"{name} {tuple(shapes[name])} instead of {expected[ours]}"
        for ours, name in pairs.items()
        if tuple(shapes[name]) != expected[ours]
    ]
    if missing or unused or other_shape:
        raise UserError(
            f"{where} does not fit its config.json ({model.config.model_type}, {model.num_layers} layers): "
            f"missing {_listed(missing)}; unused {_listed(unused)}; of another shape {_listed(other_shape)}: "
            "use the config.json that belongs to these weights"
        )
    return pairs


def _ignorable(table: Table, name: str, tied: bool) -> bool:
    """Return whether a stored weight may be unused: a score head, a tied head (compared by the loader), a leftover."""
    bare = _bare(table, name)
    known = re.fullmatch(table.harmless, bare) or re.fullmatch(OTHER_PARTS, name)
    constant = bare.endswith(tuple(table.constants))  # compared by the loader
    return name == SCORE or (tied and bare == LM_HEAD) or known is not None or constant


def _bare(table: Table, name: str) -> str:
    """Return a stored name without its prefix: the family's, or that of a language model inside a larger one."""
    prefix = next((p for p in (*NESTED_PREFIXES, table.prefix) if name.startswith(p)), "")
    return name.removeprefix(prefix)


def _listed(names: list[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{len(names)} ({', '.join(names[:LISTED])}{more})"
