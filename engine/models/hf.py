"""Load and save models in Hugging Face directories, and build new ones from a config."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.base.atomic import sync
from engine.base.errors import UserError
from engine.base.strict_json import read_object, reason_of
from engine.models.apertus import Apertus
from engine.models.bloom import Bloom
from engine.models.cohere2 import Cohere2
from engine.models.config_rules import TOKEN_IDS, check_config, refuse_code
from engine.models.decoder import Decoder
from engine.models.gemma3 import Gemma3
from engine.models.llama import Llama
from engine.models.names import LM_HEAD, SCORE, TABLES, constants, match, written_name
from engine.models.quantised import Weight, quantised_names, replace, valued_weights
from engine.models.side_by_side import lay_side_by_side
from engine.models.weight_files import StoredTensor, read_weights, write_shards

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

FAMILIES: dict[str, type[Decoder]] = {
    "bloom": Bloom,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3"), Llama),
    "gemma3_text": Gemma3,
    "cohere2": Cohere2,
    "apertus": Apertus,
}
SHARD_BYTES = 5_000_000_000
TOKENIZER_FOLDERS = ("additional_chat_templates",)  # the only folder that a saved tokenizer has


def load_config(path: str | Path) -> PretrainedConfig:
    """Load the config of a model directory. UserError, with the path, for anything that is not supported."""
    # transformers takes a second to import, so import it only here.
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path} is not a directory: pass the local directory of a model in Hugging Face layout")
    file = path / "config.json"
    if not file.is_file():
        raise UserError(f"{path} has no config.json: pass the local directory of a model in Hugging Face layout")
    fields = read_object(file)
    refuse_code(fields, file)
    fields = _language_model(fields)
    model_type = fields.get("model_type")
    if not _is_family(model_type):
        if model_type is None and (path / "model" / "config.json").is_file():
            raise UserError(f"{path} is the folder of a run: give its model, {path / 'model'}")
        raise UserError(f"{file} has model_type {model_type!r:.60}: supported are {', '.join(FAMILIES)}")
    try:
        config = CONFIG_MAPPING[model_type].from_dict(fields)
    except (StrictDataclassError, ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise UserError(f"{file} is not a valid {model_type} config ({reason_of(error)}): correct it") from error
    check_config(config, file)
    return config


def _language_model(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields of the language model inside a model that also reads images, or all fields of any other."""
    inner = fields.get("text_config")
    if not isinstance(inner, Mapping) or not _is_family(inner.get("model_type")):
        return fields
    # The outer config decides: Gemma's lists all tokens that end a turn, and transformers ties the head by it.
    outer = (*TOKEN_IDS, "tie_word_embeddings")
    return dict(inner) | {name: fields[name] for name in outer if fields.get(name) is not None}


def _is_family(model_type: Any) -> bool:
    return isinstance(model_type, str) and model_type in FAMILIES


def build_model(config: PretrainedConfig, seed: int) -> Decoder:
    """Build a new float32 model on the CPU: matrices normal(0, initializer_range), norms 1, biases 0, other
    vectors as their module's `initial` says.

    The same config and seed give the same bits. UserError for a config that the family does not support.
    """
    model = empty_model(config, "the config").to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            module, _, leaf = name.rpartition(".")
            if parameter.ndim == 2:
                parameter.normal_(0.0, config.initializer_range, generator=generator)
            else:
                initial = getattr(model.get_submodule(module), "initial", {"bias": 0.0})
                parameter.fill_(initial.get(leaf, 1.0))
    return model


def load_model(
    path: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
    trunk_dtype: str = "model", split: int = 0, embedding_dtype: str = "model",
) -> Decoder:  # fmt: skip
    """Load a model from a Hugging Face directory, in the given dtype on the given device.

    trunk_dtype int8 or int4 quantises the linear layers below layer `split` while they are read, embedding_dtype the
    embedding and the head.

    Reads mapped files tensor by tensor, so only one extra tensor is in memory. Also loads a reward model's directory
    (`load_score_weight` reads its score head). UserError, with the path, for a bad directory and for weights that do
    not match the config exactly.
    """
    path = Path(path)
    model = empty_model(load_config(path), str(path / "config.json"))
    stored = read_weights(path)
    if SCORE in stored and LM_HEAD not in stored:
        model.head = None  # a reward model's directory has no language head
    names = match(str(path), model, {name: tensor.shape for name, tensor in stored.items()})
    check_stored(path, model.config, stored, names)
    quantised = quantised_names(model, split, trunk_dtype, embedding_dtype)
    state = {}
    for ours, name in names.items():
        weight = stored[name].read().to(device, dtype, copy=True)
        if bits := quantised.get(layer := ours.removesuffix(".weight")):
            replace(model, layer, weight, bits)
            state |= {f"{layer}.{n}": part for n, part in model.get_submodule(layer).named_buffers()}
        else:
            state[ours] = weight
    model.load_state_dict(state, assign=True)
    if torch.device(device).type == "cuda":
        lay_side_by_side(model)
    return model


def load_score_weight(path: str | Path) -> Tensor | None:
    """Load the score head of a reward model's directory, float32 [D]; None for a language model.

    UserError for a bad directory and for a score head with more than one label.
    """
    path = Path(path)
    config, stored = load_config(path), read_weights(path)
    if SCORE not in stored:
        return None
    if stored[SCORE].shape != (1, config.hidden_size):
        raise UserError(
            f"{path} has a score head of shape {stored[SCORE].shape}, expected {(1, config.hidden_size)}: "
            "a reward model has one label"
        )
    return stored[SCORE].read()[0].to(torch.float32, copy=True)


def save_model(
    model: Decoder,
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    score_weight_D: Tensor | None = None,
    score_moments: tuple[float, float] | None = None,
    max_shard_bytes: int = SHARD_BYTES,
    eos_ids: Collection[int] = (),
    instead: Mapping[str, Callable[[], Tensor]] | None = None,
) -> None:
    """Write a directory that transformers loads with equal logits, or, with a score head [D], with equal scores.

    The directory appears as a whole: it is written under another name, synced, then renamed. It replaces a model;
    UserError if the target holds anything else. `score_moments` are the mean and standard deviation of a reward model's
    scores; without them, those of the model's config stay. eos_ids may end a response, so a reward model does not pad
    with them. `instead` computes weights by our names, in the shape and dtype of the model's, when they are written:
    they and the values of quantised weights exist a shard at a time.
    """
    with whole_model(Path(path)) as partial:
        weights = write_all_but_weights(model, partial, tokenizer, score_weight_D, score_moments, eos_ids, instead)
        sizes = {name: weight.nbytes for name, weight in weights.items()}
        write_shards(partial, sizes, lambda name: weights[name].read(), max_shard_bytes)


@contextmanager
def whole_model(path: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `path`, a model's directory, when the context ends; after an error it is gone.

    UserError if the path holds anything but a model.
    """
    path = path.resolve()
    check_replaceable(path)
    partial, replaced = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.replaced")
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        for written in (*partial.rglob("*"), partial):
            sync(written)
        if path.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            path.rename(replaced)
        partial.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


def write_all_but_weights(
    model: Decoder,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None,
    score_weight_D: Tensor | None,
    score_moments: tuple[float, float] | None,
    eos_ids: Collection[int],
    instead: Mapping[str, Callable[[], Tensor]] | None = None,
) -> dict[str, Weight]:
    """Write everything but the weights, as `save_model`. Returns the weights by their stored names."""
    config = _config_to_save(model, tokenizer, score_weight_D is not None, score_moments, eos_ids)
    table = TABLES[config.model_type]
    weights = {written_name(table, ours): weight for ours, weight in valued_weights(model, instead).items()}
    given = {n: torch.tensor(x, dtype=config.dtype) for n, x in constants(table, model.num_layers).items()}
    if score_weight_D is not None:
        assert score_weight_D.shape == (model.hidden_size,), score_weight_D.shape
        weights.pop(LM_HEAD, None)
        given[SCORE] = score_weight_D[None]
    else:
        assert model.config.tie_word_embeddings or model.head is not None, "a language model needs its head"
    config.to_json_file(folder / "config.json")
    if tokenizer is not None:
        _matching_tokenizer(tokenizer, config, reward=score_weight_D is not None).save_pretrained(folder)
    return weights | {name: Weight(x.shape, x.dtype, lambda x=x: x) for name, x in given.items()}


def empty_model(config: PretrainedConfig, where: str) -> Decoder:
    """Build a model on the meta device. A UserError about the config starts with `where`."""
    try:
        with torch.device("meta"):
            return FAMILIES[config.model_type](config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def check_stored(
    path: Path, config: PretrainedConfig, stored: Mapping[str, StoredTensor], names: Mapping[str, str]
) -> None:
    """UserError for a tied head that differs from the embedding, and for a constant with an unsupported value.

    `names` pairs our parameters with stored names (names.match).
    """
    if config.tie_word_embeddings and LM_HEAD in stored and names["embedding.weight"] != LM_HEAD:
        _check_tied(path, stored[LM_HEAD], stored[names["embedding.weight"]])
    _check_constants(path, config.model_type, stored)


def _check_tied(path: Path, head: StoredTensor, embedding: StoredTensor) -> None:
    weight = embedding.read()
    if head.shape != embedding.shape or not torch.equal(head.read().to(weight.dtype), weight):
        raise UserError(
            f"{path} holds a {LM_HEAD} that differs from the embedding while config.json ties them: "
            "set tie_word_embeddings to false"
        )


def _check_constants(path: Path, model_type: str, stored: Mapping[str, StoredTensor]) -> None:
    """UserError for a stored constant with another value than the one that is computed with."""
    for end, value in TABLES[model_type].constants.items():
        for name in (name for name in stored if name.endswith(end)):
            number = stored[name].read().double()
            if not torch.allclose(number, torch.full_like(number, value), rtol=1e-2, atol=0.0):  # bfloat16 rounds
                raise UserError(f"{path} has {name} {number.tolist()!r:.60}: only {value} is supported")


def check_replaceable(path: Path) -> None:
    """UserError unless the path is free, an empty directory or a model, so that no other files are lost."""
    if not path.exists():
        return
    entries = list(path.iterdir()) if path.is_dir() else []
    is_model = (path / "config.json").is_file() and all(e.is_file() or e.name in TOKENIZER_FOLDERS for e in entries)
    if not path.is_dir() or (entries and not is_model):
        raise UserError(f"{path} exists and is not a model directory: choose another path or move it away")


def _config_to_save(
    model: Decoder,
    tokenizer: PreTrainedTokenizerBase | None,
    reward: bool,
    moments: tuple[float, float] | None,
    eos_ids: Collection[int],
) -> PretrainedConfig:
    config = copy.deepcopy(model.config)
    config.dtype = next(model.parameters()).dtype
    config.architectures = [_architecture(config.model_type, reward)]
    if reward:
        config.num_labels = 1
        config.pad_token_id = _score_pad_id(config, tokenizer, eos_ids)
    elif not _can_pad(config.pad_token_id, config, tokenizer):
        config.pad_token_id = None
    # transformers keeps unknown fields, so copies of a reward model keep these.
    if moments is not None:
        config.score_mean, config.score_std = moments
    if not reward:
        for name in ("score_mean", "score_std"):
            vars(config).pop(name, None)
    return config


def _architecture(model_type: str, reward: bool) -> str:
    """Return the name of transformers' class. Where it has none for scores, as for Cohere 2, only we load a reward."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    )

    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    scores = causal.replace("ForCausalLM", "ForSequenceClassification")
    return MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(model_type, scores) if reward else causal


def _can_pad(token: int | None, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None) -> bool:
    """Return whether a padding id has an embedding row and a token; some config.json have -1.

    The engine never pads, but transformers needs both. Without them the export has no padding id.
    """
    if token is None or not 0 <= token < config.vocab_size:
        return False
    return tokenizer is None or tokenizer.convert_ids_to_tokens(token) is not None


def _score_pad_id(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None, eos_ids: Collection[int]
) -> int | None:
    """Return the padding id with which transformers scores the same token as we do.

    Its classifier reads the last token that is not padding. If padding were EOS, it would read the token before EOS. So
    no EOS is used, but BOS, which never ends a sequence. Without BOS, None: transformers then scores one sequence at a
    time and refuses more.
    """
    eos = {*eos_ids, *(config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id])}
    choices = [config.pad_token_id, config.bos_token_id]
    if tokenizer is not None:
        choices = [tokenizer.pad_token_id, config.pad_token_id, config.bos_token_id, tokenizer.bos_token_id]
        eos.add(tokenizer.eos_token_id)
    return next((token for token in choices if token not in eos and _can_pad(token, config, tokenizer)), None)


def _matching_tokenizer(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, reward: bool
) -> PreTrainedTokenizerBase:
    """Return the tokenizer to save with a reward model, which pads with the config's id."""
    if not reward or config.pad_token_id is None or tokenizer.pad_token_id == config.pad_token_id:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
    return tokenizer
