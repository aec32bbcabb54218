"""Real models under the lm-eval protocol: 200 documents of each task, every log-likelihood as lm-eval 0.4.13's.

    pip install '.[peers]' && HF_HUB_OFFLINE=1 python -m pytest -m slow tests/real/test_lm_eval.py -s

Prints the seconds of both sides.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from transformers import AutoConfig

from evaluation.data.files import LocalData
from evaluation.protocols import PROTOCOLS
from evaluation.scoring.build import build
from evaluation.scoring.context_length import context_length
from evaluation.scoring.score import Scorer
from evaluation.tasks import get_tasks
from tests.evaluation.lm_eval_peer import Peer, read

pytestmark = [pytest.mark.real, pytest.mark.slow]
pytest.importorskip("lm_eval", reason="pip install '.[peers]'")
DOCUMENTS = 200
RELATIVE = 1e-4


@pytest.fixture(scope="module")
def data_folder(real_data, tmp_path_factory) -> Path:
    """English ARC and HellaSwag, and MMLU in Vietnamese, whose questions stand in a part that lm-eval does not read."""
    folder = tmp_path_factory.mktemp("data")

    def write(name: str, rows: list[dict]) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")

    arc = read(real_data / "m_arc/en_test.json")
    write("m_arc/en_test.json", arc[:-100])
    write("m_arc/en_train.json", arc[-100:])
    write("m_hellaswag/en_validation.json", read(real_data / "m_hellaswag/en_validation.json"))
    write("m_mmlu/vi_dev.json", read(real_data / "m_mmlu/vi_dev.json"))
    write("m_mmlu/vi_test.json", read(real_data / "m_mmlu/vi_val.json"))
    return folder


@pytest.mark.parametrize(
    ("task", "lang", "peer_task"),
    [("arc", "en", "arc_challenge"), ("hellaswag", "en", "hellaswag"), ("mmlu", "vi", "m_mmlu_vi")],
)
def test_log_likelihoods_equal_lm_eval(loaded, data_folder, task, lang, peer_task):
    peer = Peer(loaded.path, data_folder, batch_size=4)
    length = min(context_length(AutoConfig.from_pretrained(loaded.path), loaded.tokenizer), peer.lm.max_length)
    protocol, data = PROTOCOLS["lm-eval"], LocalData(data_folder)
    built = build(get_tasks([task])[0], lang, data, loaded.tokenizer, protocol, length, shots=0, limit=DOCUMENTS)
    documents = list(built.documents)
    began = time.perf_counter()
    scores = dict(Scorer(loaded.model.requires_grad_(False)).score(documents))
    ours_s, began = time.perf_counter() - began, time.perf_counter()
    samples = peer.samples(peer_task, 0, DOCUMENTS)
    peer_s = time.perf_counter() - began
    assert len(samples) == len(documents) == DOCUMENTS
    worst = 0.0
    for index, (sample, document) in enumerate(zip(samples, documents)):
        assert document.prompt == sample["prompt"]
        assert [choice.text for choice in document.choices] == sample["continuations"]
        for ours, expected in zip(scores[index], sample["lls"], strict=True):
            worst = max(worst, abs(ours - expected) / abs(expected))
    print(f"{loaded.name} {peer_task}: worst relative {worst:.1e}, {ours_s:.0f} s, lm-eval {peer_s:.0f} s")
    assert worst <= RELATIVE
