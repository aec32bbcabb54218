"""Measure the speed of scoring against lm-eval, in turn in one run: `python -m evaluation.bench --data-dir DIR`.

Both sides score the same token ids with the same random weights in float32. The times leave out tokenization, loading
and imports. lm-eval computes each document on its own, so a small sample gives its speed. Ours scores more documents,
because shared prefixes are computed once for all of them and must count in full.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.base.errors import UserError
from engine.base.jsonl import iterate_objects
from engine.cli.parse import main
from engine.init_model import init_model
from engine.models import load_model
from engine.text.tokenizer import load_tokenizer
from evaluation.data.files import Data, open_data
from evaluation.protocols import get_protocol
from evaluation.scoring.build import build
from evaluation.scoring.documents import Document
from evaluation.scoring.score import Scorer
from evaluation.tasks import get_tasks

Ask = Callable[[list[Any]], dict[str, Any]]  # requests -> {"seconds", "lls"}
MAX_LENGTH = 8192  # long enough to cut no prompt: cut prompts share no prefix


@dataclass(frozen=True)
class Case:
    """A task with its settings.

    ours  number of documents that we score per round
    peer  number of documents that lm-eval scores per round
    aim   the speed that this project promises, as a multiple of lm-eval's
    """

    task: str
    lang: str
    protocol: str
    shots: int
    shared_shots: bool
    ours: int
    peer: int
    aim: float


CASES = {
    "arc": Case("arc", "vi", "lm-eval", 25, False, ours=8, peer=2, aim=3.5),
    "mmlu": Case("mmlu", "en", "lm-eval", 5, False, ours=200, peer=8, aim=5),
    "shared": Case("arc", "vi", "strict", 25, True, ours=120, peer=1, aim=20),
}
SUBJECTS = 4  # number of MMLU subjects, evenly spaced in alphabetical order


def job(argv: Sequence[str]) -> None:
    """Run the cases. Print one line per case, then one line of JSON."""
    options = _parser().parse_args(argv)
    torch.set_num_threads(options.threads)
    data, rows = open_data(options.data_dir), []
    with tempfile.TemporaryDirectory() as folder:
        model_folder = Path(folder, "model")
        shape = {"layers": options.layers, "hidden": options.hidden, "heads": options.hidden // 64}
        init_model(
            _texts(Path(options.data_dir)), options.vocab_size, model_folder, family=options.family,
            max_positions=MAX_LENGTH, **shape,
        )  # fmt: skip
        model, tokenizer = load_model(model_folder).requires_grad_(False), load_tokenizer(model_folder)
        with _peer(options.peer_python, model_folder, options.peer_batch_size, options.threads) as ask:
            for name in options.cases.split(","):
                documents = _documents(CASES[name], data, tokenizer)
                rows.append({"case": name, **_measure(CASES[name], documents, model, ask, options)})
                _show(rows[-1])
    print(json.dumps({"family": options.family, "threads": options.threads, "cases": rows}))


def _measure(
    case: Case, documents: list[Document], model: Any, ask: Ask, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the medians over rounds of the seconds per document, and the largest difference between the scores."""
    ours, theirs, difference = [], [], 0.0
    # Evenly spaced by length, so that the sample's mean length is close to that of all documents.
    by_length = sorted(range(len(documents)), key=lambda i: len(documents[i].choices[0].context_ids))
    indices = [by_length[(2 * i + 1) * len(by_length) // (2 * case.peer)] for i in range(case.peer)]
    sample = [documents[index] for index in indices]
    list(Scorer(model, num_threads=options.threads).score(documents[:1]))  # warm-up: a process's first forward is slow
    for _ in range(options.rounds):
        scorer = Scorer(model, options.batch_tokens, num_threads=options.threads)
        began = time.perf_counter()
        scores = dict(scorer.score(documents))
        ours.append((time.perf_counter() - began) / len(documents))
        requests = [(c.context_ids, c.continuation_ids) for document in sample for c in document.choices]
        answer = ask(requests)
        theirs.append(answer["seconds"] / len(sample))
        lls = [ll for index in indices for ll in scores[index]]
        difference = max(difference, *(abs(a - b) for a, b in zip(lls, answer["lls"])))
    lengths, sampled = ([len(c.context_ids) for d in some for c in d.choices] for some in (documents, sample))
    return {
        "documents": [len(documents), len(sample)],
        "context_tokens": [statistics.mean(lengths), statistics.mean(sampled)],
        "positions_a_document": scorer.work.positions_computed / len(documents),
        "ours_s": statistics.median(ours),
        "lm_eval_s": statistics.median(theirs),
        "ratio": statistics.median(theirs) / statistics.median(ours),
        "aim": case.aim,
        "largest_difference": difference,
    }


def _show(row: dict[str, Any]) -> None:
    (scored, sampled), (tokens, of_sample) = row["documents"], row["context_tokens"]
    print(
        f"{row['case']:7} {row['ratio']:.1f}x (aim {row['aim']}x): ours {row['ours_s']:.3f} s per document ({scored}), "
        f"lm-eval {row['lm_eval_s']:.3f} s ({sampled}); contexts of {tokens:.0f} tokens (sample: {of_sample:.0f}), "
        f"{row['positions_a_document']:.0f} computed per document; scores within {row['largest_difference']:.1e}",
        flush=True,
    )


def _documents(case: Case, data: Data, tokenizer: Any) -> list[Document]:
    (task,) = get_tasks([case.task])
    built = build(
        task, case.lang, data, tokenizer, get_protocol(case.protocol), MAX_LENGTH, shots=case.shots,
        shared_shots=case.shared_shots, limit=case.ours if case.task == "arc" else case.ours // SUBJECTS,
    )  # fmt: skip
    subjects = sorted({document.subject for document in built.documents if document.subject})
    if subjects:
        chosen = subjects[:: -(-len(subjects) // SUBJECTS)]
        return [document for document in built.documents if document.subject in chosen]
    return built.documents


def _texts(folder: Path) -> list[str]:
    """Return texts to train the tokenizer on: the questions and options of two test files."""
    texts = []
    for name in ("m_arc/vi_test.json", "m_mmlu/en_test.json"):
        rows = [row for _, row in zip(range(2000), (row for _, row in iterate_objects(folder / name)))]
        texts += [str(value) for row in rows for key, value in row.items() if key != "id"]
    return texts


@contextmanager
def _peer(python: str, model: Path, batch_size: int, threads: int) -> Iterator[Ask]:
    """Start lm-eval in a process of its own, which is idle while ours is measured. Yield the function that asks it."""
    # -P: without it, a file of this folder would replace a library of the same name.
    script = Path(__file__).with_name("bench_peer.py")
    command = [python, "-P", str(script), str(model), *map(str, (batch_size, threads, MAX_LENGTH))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout

        def answer() -> dict[str, Any]:
            line = process.stdout.readline()
            if not line:
                raise UserError("the peer stopped (its error is above): pip install .[peers], or give --peer-python")
            return json.loads(line)

        def ask(requests: list[Any]) -> dict[str, Any]:
            process.stdin.write(json.dumps({"requests": requests}) + "\n")
            process.stdin.flush()
            return answer()

        print(f"lm-eval {answer()['version']}", flush=True)
        yield ask


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m evaluation.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--vs", choices=["lm-eval"], default="lm-eval", help="the library to compare with")
    parser.add_argument("--data-dir", required=True, help="folder that holds m_arc and m_mmlu")
    parser.add_argument(
        "--cases", default=",".join(CASES), help="some of arc, mmlu, shared, with commas (default: all)"
    )
    parser.add_argument("--family", choices=["llama", "bloom"], default="llama")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocab-size", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch-tokens", type=int, default=512)
    parser.add_argument("--peer-batch-size", type=int, default=1, help="lm-eval's --batch_size")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python with lm_eval installed")
    return parser


if __name__ == "__main__":
    main(job)
