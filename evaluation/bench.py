"""Speed of scoring against lm-eval, alternating in one run: `python -m evaluation.bench --data-dir DIR`.

Both sides score the same documents' token ids with the same random weights in float32; tokenising, loading and imports
are on nobody's clock. lm-eval computes every document on its own, so that a sample gives its speed; ours scores more
documents, since what it computes once for all of them must count in full.
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

Ask = Callable[[list[Any]], dict[str, Any]]
MAX_LENGTH = 8192  # so that no prompt is cut: cut ones share no prefix


@dataclass(frozen=True)
class Case:
    """What is scored, and how many documents of it on each side and round.

    aim  times lm-eval's speed, what this project promises
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
SUBJECTS = 4  # of MMLU, spread over the alphabet


def job(argv: Sequence[str]) -> None:
    """Run the cases, print a table for people and one line of JSON for programs."""
    options = _parser().parse_args(argv)
    torch.set_num_threads(options.threads)
    data, rows = open_data(options.data_dir), []
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "model")
        shape = {"layers": options.layers, "hidden": options.hidden, "heads": options.hidden // 64}
        init_model(
            _texts(Path(options.data_dir)), options.vocab_size, made, family=options.family,
            max_positions=MAX_LENGTH, **shape,
        )  # fmt: skip
        model, tokenizer = load_model(made).requires_grad_(False), load_tokenizer(made)
        with _peer(options.peer_python, made, options.peer_batch_size, options.threads) as ask:
            for name in options.cases.split(","):
                documents = _documents(CASES[name], data, tokenizer)
                rows.append({"case": name, **_measure(CASES[name], documents, model, ask, options)})
                _show(rows[-1])
    print(json.dumps({"family": options.family, "threads": options.threads, "cases": rows}))


def _measure(
    case: Case, documents: list[Document], model: Any, ask: Ask, options: argparse.Namespace
) -> dict[str, Any]:
    """Medians over rounds of seconds a document, and how far the scores of both are apart."""
    ours, theirs, apart = [], [], 0.0
    # Evenly from the shortest to the longest: a sample's mean length is that of all.
    by_length = sorted(range(len(documents)), key=lambda i: len(documents[i].choices[0].context_ids))
    places = [by_length[(2 * i + 1) * len(by_length) // (2 * case.peer)] for i in range(case.peer)]
    sample = [documents[place] for place in places]
    list(Scorer(model, num_threads=options.threads).score(documents[:1]))  # the first forward of a process is slow
    for _ in range(options.rounds):
        scorer = Scorer(model, options.batch_tokens, num_threads=options.threads)
        began = time.perf_counter()
        scores = dict(scorer.score(documents))
        ours.append((time.perf_counter() - began) / len(documents))
        requests = [(c.context_ids, c.continuation_ids) for document in sample for c in document.choices]
        answer = ask(requests)
        theirs.append(answer["seconds"] / len(sample))
        lls = [ll for place in places for ll in scores[place]]
        apart = max(apart, *(abs(a - b) for a, b in zip(lls, answer["lls"])))
    lengths, sampled = ([len(c.context_ids) for d in some for c in d.choices] for some in (documents, sample))
    return {
        "documents": [len(documents), len(sample)],
        "context_tokens": [statistics.mean(lengths), statistics.mean(sampled)],
        "positions_a_document": scorer.work.positions_computed / len(documents),
        "ours_s": statistics.median(ours),
        "lm_eval_s": statistics.median(theirs),
        "ratio": statistics.median(theirs) / statistics.median(ours),
        "aim": case.aim,
        "largest_difference": apart,
    }


def _show(row: dict[str, Any]) -> None:
    (scored, sampled), (tokens, of_sample) = row["documents"], row["context_tokens"]
    print(
        f"{row['case']:7} {row['ratio']:.1f}x (aim {row['aim']}x): ours {row['ours_s']:.3f} s a document ({scored}), "
        f"lm-eval {row['lm_eval_s']:.3f} s ({sampled}); contexts of {tokens:.0f} tokens (sample: {of_sample:.0f}), "
        f"{row['positions_a_document']:.0f} computed a document; scores within {row['largest_difference']:.1e}",
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
    """What the tokenizer is trained on: the questions and options of the files that are scored."""
    texts = []
    for name in ("m_arc/vi_test.json", "m_mmlu/en_test.json"):
        rows = [row for _, row in zip(range(2000), (row for _, row in iterate_objects(folder / name)))]
        texts += [str(value) for row in rows for key, value in row.items() if key != "id"]
    return texts


@contextmanager
def _peer(python: str, model: Path, batch_size: int, threads: int) -> Iterator[Ask]:
    """lm-eval in a process of its own, which waits without work while ours is measured."""
    # -P: this folder has a requests.py, which must not stand in for the library of that name.
    script = Path(__file__).with_name("bench_peer.py")
    command = [python, "-P", str(script), str(model), *map(str, (batch_size, threads, MAX_LENGTH))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout

        def answer() -> dict[str, Any]:
            line = process.stdout.readline()
            if not line:
                raise UserError("the peer stopped (its error is above): pip install .[peers], or name --peer-python")
            return json.loads(line)

        def ask(requests: list[Any]) -> dict[str, Any]:
            process.stdin.write(json.dumps({"requests": requests}) + "\n")
            process.stdin.flush()
            return answer()

        print(f"lm-eval {answer()['version']}", flush=True)
        yield ask


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m evaluation.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--vs", choices=["lm-eval"], default="lm-eval", help="whom to measure against")
    parser.add_argument("--data-dir", required=True, help="folder with m_arc and m_mmlu")
    parser.add_argument("--cases", default=",".join(CASES), help="of arc, mmlu, shared (default: all)")
    parser.add_argument("--family", choices=["llama", "bloom"], default="llama")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocab-size", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch-tokens", type=int, default=512)
    parser.add_argument("--peer-batch-size", type=int, default=1, help="lm-eval's --batch_size")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has lm_eval")
    return parser


if __name__ == "__main__":
    main(job)
