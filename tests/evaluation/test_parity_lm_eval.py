"""Parity with lm-eval on real files: equal prompts, byte for byte, and equal log-likelihoods of every choice.

    pip install '.[peers]' && HF_HUB_OFFLINE=1 python -m pytest -m slow tests/evaluation/test_parity_lm_eval.py

The models have the shapes of BLOOM and LLaMA and sharp attention: with plain random weights, scores would hardly
depend on the shots.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers

from engine.models import load_model
from evaluation.data.files import LocalData
from evaluation.protocols import PROTOCOLS
from evaluation.scoring.build import build
from evaluation.scoring.context_length import context_length
from evaluation.scoring.documents import Document
from evaluation.scoring.score import Scorer
from evaluation.tasks import get_tasks
from tests.evaluation.lm_eval_peer import Peer, read
from tests.evaluation.parity_models import CASES, model_of, tokenizer_of

pytestmark = pytest.mark.slow
pytest.importorskip("lm_eval", reason="pip install '.[peers]'")
pytest.importorskip("datasets", reason="pip install '.[peers]'")

LANGS = ("ne", "vi", "fr", "te", "zh")
LIMIT = 2
# Both sides compute in float32. lm-eval also sums in float32, which rounds its total by up to 2e-7 at every addition.
TOLERANCE, RELATIVE = 1e-4, 5e-7


@pytest.fixture(scope="module")
def data_folder(real_data, tmp_path_factory) -> Path:
    """The real files. If the release lacks a file in a language, make one in its format from real questions."""
    folder = tmp_path_factory.mktemp("data")

    def write(name: str, rows: list[dict]) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")

    for lang in LANGS:
        for part in ("train", "validation", "test"):
            write(f"m_arc/{lang}_{part}.json", read(real_data / f"m_arc/{lang}_{part}.json"))
        write(f"m_mmlu/{lang}_dev.json", read(real_data / f"m_mmlu/{lang}_dev.json"))
        write(f"m_mmlu/{lang}_test.json", read(real_data / f"m_mmlu/{lang}_val.json"))
        write(f"m_truthfulqa/{lang}_validation.json", read(real_data / f"m_truthfulqa/{lang}_validation.json"))
        write(f"m_hellaswag/{lang}_validation.json", [*map(scene, read(real_data / f"m_arc/{lang}_test.json")[:60])])
    for part in ("train", "validation", "test"):
        write(f"m_arc/mr_{part}.json", [*map(with_long_options, read(real_data / f"m_arc/ne_{part}.json")[:60])])
    write("m_hellaswag/hi_validation.json", [*map(scene, read(real_data / "m_arc/ne_train.json")[:60])])
    english = read(real_data / "m_arc/en_test.json")
    write("m_arc/en_test.json", english[:500])
    write("m_arc/en_train.json", english[500:])
    for part in ("dev", "test"):
        write(f"m_mmlu/en_{part}.json", read(real_data / f"m_mmlu/en_{part}.json"))
    write("m_hellaswag/en_validation.json", read(real_data / "m_hellaswag/en_validation.json"))
    write("m_truthfulqa/en_validation.json", read(real_data / "m_truthfulqa/fr_validation.json"))
    return folder


def scene(row: dict) -> dict:
    """An ARC question as a HellaSwag record, with the marks that HellaSwag's cleaning removes."""
    endings = [row[f"option_{letter}"] + " [step] 2" for letter in "abcd" if f"option_{letter}" in row]
    return {
        "ind": 0,
        "activity_label": "x [header]",
        "ctx_a": row["instruction"],
        "ctx_b": "então [title] Ab",
        "endings": endings,
        "label": str("ABCD".index(row["answer"]) % len(endings)),
    }


def with_long_options(row: dict) -> dict:
    """An ARC question with options of some hundred tokens each."""
    return {name: " ".join([text] * 20) if name.startswith("option_") else text for name, text in row.items()}


@cache
def sample_of(real_data: Path) -> tuple[str, ...]:
    rows = [row for lang in (*LANGS, "en") for row in read(real_data / f"m_arc/{lang}_test.json")[:150]]
    return tuple(f"{row['instruction']} {row['option_a']} {row['option_b']}" for row in rows)


@pytest.fixture(scope="module", params=CASES)
def both(request, real_data, data_folder, tmp_path_factory):
    """The peer, and our data, tokenizer, model and context length."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tokenizer_of(request.param, sample_of(real_data))
    model_of(CASES[request.param], len(tokenizer), folder)
    tokenizer.save_pretrained(folder)
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    starts_with_bos = loaded("a").input_ids[0] == loaded.bos_token_id
    assert starts_with_bos == request.param.endswith(", BOS")
    assert len(loaded(" a").input_ids) - len(loaded("a").input_ids) == (request.param == "LLaMA-1's SentencePiece")
    model = load_model(folder, torch.float32)
    length = context_length(transformers.AutoConfig.from_pretrained(folder), loaded)
    peer = Peer(folder, data_folder)
    assert peer.lm.max_length == length == (2048 if CASES[request.param] == "bloom" else 1024)
    return peer, LocalData(data_folder), loaded, model, length


def documents_of(both, task: str, lang: str, shots: int, subject: str | None = None) -> list[Document]:
    _, data, tokenizer, _, length = both
    built = build(get_tasks([task])[0], lang, data, tokenizer, PROTOCOLS["lm-eval"], length, shots=shots, limit=LIMIT)
    return [document for document in built.documents if subject is None or document.subject == subject]


def compare(both, peer_task: str, documents: list[Document], shots: int) -> None:
    peer, _, _, model, _ = both
    samples = peer.samples(peer_task, shots, LIMIT)
    assert len(samples) == len(documents) == LIMIT
    scores = dict(Scorer(model).score(documents))
    for index, (sample, document) in enumerate(zip(samples, documents)):
        assert document.prompt == sample["prompt"]
        assert [choice.text for choice in document.choices] == sample["continuations"]
        for choice, ours, expected in zip(document.choices, scores[index], sample["lls"], strict=True):
            allowed = max(TOLERANCE, RELATIVE * abs(expected))
            assert abs(ours - expected) <= allowed, (peer_task, document.id, choice.text)


@pytest.mark.parametrize(("lang", "shots"), [("ne", 25), ("vi", 5), ("fr", 0), ("te", 6), ("zh", 3)])
def test_arc(both, lang, shots):
    documents = documents_of(both, "arc", lang, shots)
    if shots == 25:
        assert all(choice.truncated for choice in documents[0].choices)
    compare(both, f"arc_{lang}", documents, shots)


def test_long_choices(both):
    """Log-likelihoods below -1,000 nats, from Nepali questions with long options in a Marathi file."""
    documents = documents_of(both, "arc", "mr", 0)
    compare(both, "arc_mr", documents, 0)
    lowest = min(min(lls) for lls in dict(Scorer(both[3]).score(documents)).values())
    assert lowest < -1000, "the choices are too short to need RELATIVE"


def test_arc_in_english(both):
    compare(both, "arc_challenge", documents_of(both, "arc", "en", 4), 4)


@pytest.mark.parametrize(("lang", "shots"), [("ne", 0), ("vi", 4), ("fr", 7), ("te", 2), ("hi", 1)])
def test_hellaswag(both, lang, shots):
    """lm-eval has no HellaSwag in Chinese, so this uses Hindi, with Nepali questions."""
    compare(both, f"hellaswag_{lang}", documents_of(both, "hellaswag", lang, shots), shots)


def test_hellaswag_in_english(both):
    compare(both, "hellaswag", documents_of(both, "hellaswag", "en", 10), 10)


@pytest.mark.parametrize(("lang", "shots"), [("ne", 2), ("vi", 0), ("fr", 5), ("te", 1), ("zh", 3)])
def test_mmlu(both, lang, shots):
    compare(both, f"m_mmlu_{lang}", documents_of(both, "mmlu", lang, shots), shots)


@pytest.mark.parametrize("subject", ["anatomy", "high_school_us_history"])
def test_mmlu_in_english(both, subject):
    compare(both, f"mmlu_{subject}", documents_of(both, "mmlu", "en", 5, subject), 5)


@pytest.mark.parametrize(("lang", "shots"), [("ne", 0), ("vi", 1), ("fr", 0), ("te", 0), ("zh", 2)])
@pytest.mark.parametrize("targets", ["mc1", "mc2"])
def test_truthfulqa(both, targets, lang, shots):
    documents = documents_of(both, f"truthfulqa_{targets}", lang, shots)
    compare(both, f"truthfulqa_{lang}_{targets}", documents, shots)


@pytest.mark.parametrize("targets", ["mc1", "mc2"])
def test_truthfulqa_in_english(both, targets):
    compare(both, f"truthfulqa_{targets}", documents_of(both, f"truthfulqa_{targets}", "en", 0), 0)


def test_swapped_shots_change_the_scores(both):
    """If they did not, the tests above would pass with wrong shots."""
    _, _, tokenizer, model, length = both
    document = documents_of(both, "arc", "vi", 2)[0]
    first, second, question = document.prompt.split("\n\n")
    swapped = "\n\n".join([second, first, question])
    choice = document.choices[0]
    choice_after_swap = replace(choice, context_ids=tuple(tokenizer(swapped).input_ids))
    pair = [replace(document, choices=(choice,)), replace(document, choices=(choice_after_swap,))]
    scores = dict(Scorer(model).score(pair))
    assert abs(scores[1][0] - scores[0][0]) > 100 * TOLERANCE
