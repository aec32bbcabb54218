"""Parity with lm-eval on made-up records in the published formats: equal prompts and log-likelihoods of every choice.

    pip install '.[peers]' && HF_HUB_OFFLINE=1 python -m pytest -m slow tests/evaluation/test_parity_sets.py

The models and tokenizers are those of parity_models.py. Two of the tokenizers add BOS, two do not.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from engine.models import load_model
from evaluation.data.files import LocalData
from evaluation.data.sets import SETS
from evaluation.protocols import PROTOCOLS
from evaluation.scoring.build import build
from evaluation.scoring.documents import Document
from evaluation.scoring.metrics import document_scores
from evaluation.scoring.score import Scorer
from evaluation.tasks import get_tasks
from tests.evaluation.lm_eval_peer import PUBLISHED_FOLDERS, Peer
from tests.evaluation.made_up_sets import MAKERS, make, sentences, words
from tests.evaluation.parity_models import CASES, model_of, tokenizer_of

pytestmark = pytest.mark.slow
lm_eval = pytest.importorskip("lm_eval", reason="pip install '.[peers]'")
pytest.importorskip("datasets", reason="pip install '.[peers]'")

ALONE = {"eurogest"}  # lm-eval has no such task
LIMIT = 4
RELATIVE = 1e-4

# Our task, language, shots, lm-eval's task, subject. Each task without shots and with some, where it has any.
PAIRS = [
    ("belebele", "ne", 0, "belebele_npi_Deva", None),
    ("belebele", "sr", 2, "belebele_srp_Cyrl", None),
    ("xcopa", "vi", 0, "xcopa_vi", None),
    ("xcopa", "zh", 3, "xcopa_zh", None),
    ("xcopa", "ta", 1, "xcopa_ta", None),
    ("xcopa", "id", 0, "xcopa_id", None),
    ("xcopa", "it", 2, "xcopa_it", None),
    ("xstorycloze", "te", 0, "xstorycloze_te", None),
    ("xstorycloze", "ru", 3, "xstorycloze_ru", None),
    *(("xnli", lang, shots, f"xnli_{lang}", None)
      for lang, shots in zip(("ru", "de", "zh", "fr", "es", "vi", "ar", "hi"), (0, 2, 0, 0, 1, 3, 0, 0))),
    ("global_mmlu", "bn", 0, "global_mmlu_bn_stem", "STEM"),
    ("global_mmlu", "hi", 3, "global_mmlu_hi_stem", "STEM"),
    ("global_mmlu_full", "ne", 0, "global_mmlu_full_ne_virology", "virology"),
    ("global_mmlu_full", "te", 5, "global_mmlu_full_te_anatomy", "anatomy"),
    ("include", "ml", 0, "include_base_44_malayalam_stem", "STEM"),
    ("include", "zh", 3, "include_base_44_chinese_social_science", "Social Science"),
    ("global_piqa_nonparallel", "mr", 0, "global_piqa_nonparallel_cloze_mar_deva", None),
    ("global_piqa_nonparallel", "fr", 2, "global_piqa_nonparallel_cloze_fra_latn_fran", None),
    ("global_piqa_parallel", "kn", 0, "global_piqa_parallel_cloze_kan_knda", None),
    ("indicparam", "ne", 0, "indicparam_nepali", None),
    ("indicparam", "mr", 2, "indicparam_marathi", None),
    ("multiblimp", "hr", 0, "multiblimp_hbs", None),
    ("multiblimp", "ar", 0, "multiblimp_arb", None),
    ("multiblimp", "uk", 0, "multiblimp_ukr", None),
    ("crows_pairs", "fr", 0, "crows_pairs_french", None),
]  # fmt: skip


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    for task, lang, *_ in PAIRS:
        make(folder, task, lang)
    return folder


@pytest.fixture(scope="module", params=CASES)
def both(request, data_folder, tmp_path_factory):
    """The peer, and our data, tokenizer and model."""
    folder = tmp_path_factory.mktemp("model")
    texts = tuple(text for lang in dict.fromkeys(pair[1] for pair in PAIRS) for text in sentences(lang) + words(lang))
    tokenizer = tokenizer_of(request.param, texts)
    model_of(CASES[request.param], len(tokenizer), folder)
    tokenizer.save_pretrained(folder)
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    peer = Peer(folder, data_folder, task_folders=PUBLISHED_FOLDERS)
    return peer, LocalData(data_folder), loaded, load_model(folder, torch.float32)


def documents_of(both, task: str, lang: str, shots: int, subject: str | None) -> list[Document]:
    peer, data, tokenizer, _ = both
    found = get_tasks([task])[0]
    built = build(found, lang, data, tokenizer, PROTOCOLS["lm-eval"], peer.lm.max_length, shots=shots, limit=LIMIT)
    return [document for document in built.documents if subject is None or document.subject == subject]


@pytest.mark.parametrize(("task", "lang", "shots", "peer_task", "subject"), PAIRS)
def test_prompts_and_scores_equal_lm_evals(both, task, lang, shots, peer_task, subject):
    documents = documents_of(both, task, lang, shots, subject)
    samples = both[0].samples(peer_task, shots, LIMIT)
    assert len(samples) == len(documents) == LIMIT
    scores = dict(Scorer(both[3]).score(documents))
    largest = 0.0
    for index, (sample, document) in enumerate(zip(samples, documents)):
        assert document.prompt == sample["prompt"]
        assert [choice.text for choice in document.choices] == sample["continuations"]
        target = str(sample["target"])
        assert document.gold == ("ABCD".index(target) if target in "ABCD" else int(target))
        for ours, expected in zip(scores[index], sample["lls"], strict=True):
            largest = max(largest, abs(ours - expected) / abs(expected))
        metrics = get_tasks([task])[0].metrics
        assert document_scores(document, scores[index], metrics) == pytest.approx(sample["metrics"], abs=1e-3)
    print(f"{peer_task}: largest relative difference {largest:.1e}")
    assert largest < RELATIVE


def test_every_published_task_has_a_pair():
    assert {pair[0] for pair in PAIRS} | ALONE == set(MAKERS) == {name for name in SETS if not name.startswith("m_")}
    assert not [name for name in ALONE if (Path(lm_eval.__file__).parent / "tasks" / name).exists()]
