"""Tokenised files: rows hold each token once and no document with another, faults are a line, memory is bounded."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.base.errors import UserError
from engine.base.mixture import parse_sources
from engine.cli.console import Console
from engine.text.tokenizer import train_byte_bpe
from engine.training.corpus import Corpus, HeldOutText, names_of_files, start_of, tokenise
from tests.engine.training.trainers import EOS, one_rank, tiny_tokenizer
from tests.launch import small

QUIET = Console(enabled=False)


@pytest.fixture(scope="module")
def world():
    with one_rank() as world:
        yield world


def text_of(lengths, seed=0):
    """Documents of these numbers of words."""
    rng = random.Random(seed)
    return [" ".join(f"w{rng.randrange(4, 60)}" for _ in range(n)) for n in lengths]


def write(path, documents):
    path.write_text("\n\n".join(documents) + "\n")
    return path


def ids_of(document):
    return (EOS, *(int(word[1:]) for word in document.split()), EOS)


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(1, 25), min_size=1, max_size=12), length=st.integers(3, 20))
def test_each_token_but_the_first_of_a_document_is_predicted_once(tmp_path_factory, world, lengths, length):
    folder, documents = tmp_path_factory.mktemp("rows"), text_of(lengths)
    sources = parse_sources([str(write(folder / "a.txt", documents))])
    corpus = Corpus(sources, tokenise(sources, tiny_tokenizer(), folder / "tokens", world, QUIET), length)
    rows = list(corpus)
    assert len(rows) == len(corpus)
    assert sum(row.documents for row in rows) == len(documents)
    assert sum(row.predicted for row in rows) == sum(n + 1 for n in lengths)
    expected = [pair for d, n in zip(documents, lengths) for pair in zip(ids_of(d), ids_of(d)[1:])]
    sequences = [e.tokens for row in rows for e in row.examples]
    assert [pair for tokens in sequences for pair in zip(tokens, tokens[1:])] == expected
    # No padding: all rows but the last of a file are full, but for a token that another row or no one predicts.
    assert all(length - 1 - len(row.examples) <= row.predicted <= length - 1 for row in rows[:-1])
    ids = [ids_of(d) for d in documents]
    for tokens in sequences:  # a sequence lies within one document
        assert any(tokens == d[i : i + len(tokens)] for d in ids for i in range(len(d)))


def test_rows_by_hand(tmp_path, world):
    """Documents of 3, 2 and 5 words in rows of 6: 5 + 4 + 7 tokens, a row every 5."""
    documents = ["w10 w11 w12", "w20 w21", "w30 w31 w32 w33 w34"]
    sources = parse_sources([str(write(tmp_path / "a.txt", documents))])
    (file,) = tokenise(sources, tiny_tokenizer(), tmp_path / "tokens", world, QUIET)
    assert (file.tokens, file.documents) == (16, 3)
    rows = [[e.tokens for e in row.examples] for row in Corpus(sources, [file], 6)]
    assert rows == [
        [(2, 10, 11, 12, 2)],  # the sixth token is the first of the second document: it begins the next row
        [(2, 20, 21, 2), (2, 30)],
        [(30, 31, 32, 33, 34, 2)],
    ]
    assert [row.documents for row in Corpus(sources, [file], 6)] == [1, 2, 0]


def test_a_document_begins_with_what_the_tokenizer_adds(tmp_path):
    assert start_of(tiny_tokenizer()) == [EOS]
    from engine.text.tokenizer import load_tokenizer

    llama = load_tokenizer(small.make_model(tmp_path / "m", "llama"))
    assert start_of(llama) == []  # encode_prompt puts BOS there


def test_files_are_tokenised_once_until_they_or_the_tokenizer_change(tmp_path, world, monkeypatch):
    path = write(tmp_path / "a.txt", text_of([4, 5]))
    sources, folder = parse_sources([str(path)]), tmp_path / "tokens"
    (first,) = tokenise(sources, tiny_tokenizer(), folder, world, QUIET)
    with monkeypatch.context() as patched:
        patched.setattr("engine.training.corpus.read_documents", None)
        assert tokenise(sources, tiny_tokenizer(), folder, world, QUIET) == [first]
    write(path, text_of([4, 6]))
    (second,) = tokenise(sources, tiny_tokenizer(), folder, world, QUIET)
    assert second.digest != first.digest and second.path != first.path
    other = tiny_tokenizer()
    other.eos_token = "<pad>"
    assert tokenise(sources, other, folder, world, QUIET)[0].path not in (first.path, second.path)
    second.path.write_bytes(second.path.read_bytes()[:-4])
    with pytest.raises(UserError, match="does not fit .*json: delete both to tokenise the file again"):
        tokenise(sources, tiny_tokenizer(), folder, world, QUIET)
    with pytest.raises(UserError, match="was cut while the run read it"):
        second.row(0, 64, 0)


def test_a_fault_leaves_no_token_file(tmp_path, world):
    (tmp_path / "a.txt").write_bytes(b"w5 w6\n\nw7 \xff")
    with pytest.raises(UserError, match="byte 10 is not UTF-8"):
        tokenise(parse_sources([str(tmp_path / "a.txt")]), tiny_tokenizer(), tmp_path / "tokens", world, QUIET)
    assert list((tmp_path / "tokens").iterdir()) == []


def test_names_of_files():
    assert names_of_files(["a/ne.txt", "b/en.jsonl.gz"]) == ["ne", "en"]
    assert names_of_files(["a/ne.txt", "b/ne.jsonl", "x y.txt"]) == ["ne-1", "ne-2", "x_y"]


def test_held_out_text_is_whole_documents_up_to_a_number_of_tokens(tmp_path):
    path = write(tmp_path / "a.txt", ["w4 w5 w6 w7", "w8", "w9"])
    text = HeldOutText.read("a", str(path), tiny_tokenizer(), 3, 7)
    assert [e.tokens for e in text.examples] == [(EOS, 4, 5), (5, 6, 7), (EOS, 8)]
    assert (text.bytes, text.documents) == ((11, 0, 2), 2)


# Tokenise each mixture in turn, read 200 of its steps, or those after a share, and say what that took.
READER = """
import hashlib, json, sys, time
from pathlib import Path
from engine.base.draws import Draws
from engine.base.mixture import parse_sources
from engine.cli.console import Console
from engine.distributed.world import start_world
from engine.text.tokenizer import load_tokenizer
from engine.training.corpus import Corpus, tokenise

def peak_mb():
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) / 1024

folder, first = Path(sys.argv[1]), float(sys.argv[2])
tokenizer, world, console = load_tokenizer(folder / "m"), start_world(), Console(enabled=False)
for mixture in sys.argv[3:]:
    start, busy = time.perf_counter(), time.process_time()
    sources = parse_sources([str(folder / name) for name in mixture.split(",")])
    corpus = Corpus(sources, tokenise(sources, tokenizer, folder / "tokens", world, console), 512)
    draws, rows = Draws(corpus.mixture, 64, 1, None, 0, "pretrain"), hashlib.sha256()
    for step in range(0, len(draws), max(1, len(draws) // 200)):
        if step < first * len(draws):
            continue
        read = [corpus[i] for i in draws[step]]
        if step >= 0.5 * len(draws):
            rows.update(repr([(row.id, row.examples) for row in read]).encode())
    print(json.dumps({
        "files": mixture, "peak_mb": peak_mb(), "tokens": sum(file.tokens for file in corpus.files),
        "documents": sum(file.documents for file in corpus.files), "steps": len(draws), "rows": rows.hexdigest()[:16],
        "seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - busy,
    }))
"""


def read_text(folder, first, *mixtures):
    """What a process of its own says of each mixture, whose steps it reads from this share of them on."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", READER, str(folder), str(first), *mixtures]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


TEXT_MB = int(os.environ.get("TEXT_MB", "200"))


@pytest.mark.slow
@pytest.mark.timeout(600 + 10 * TEXT_MB)
def test_memory_does_not_grow_with_the_text(tmp_path):
    """Half of 200 MB, or of TEXT_MB, and all of it: the peak is at most 4 MB above that of 2 MB of text. A process that
    starts in the middle reads the rows of one that began at the start."""
    size = TEXT_MB * 1_000_000
    rng, syllables = random.Random(0), ["ka", "ro", "mi", "te", "su", "na", "ne", "pa", "न", "पा", "ली", "सु"]
    words = ["".join(rng.choices(syllables, k=rng.randrange(1, 6))) for _ in range(2000)]
    documents = [" ".join(rng.choices(words, k=rng.randrange(5, 400))) for _ in range(1000)]
    train_byte_bpe(documents, 1500).save_pretrained(tmp_path / "m")
    for name, bytes_ in (("warm.txt", 2_000_000), ("a.txt", size // 2), ("b.txt", size // 2)):
        with open(tmp_path / name, "wb") as file:
            number = 0
            while file.tell() < bytes_:  # each document is another one, for the sake of caches
                number += 1
                file.write(f"{name}{number} {documents[number % 1000]}\n\n".encode())
    both = "a.txt:9,b.txt:1"
    found = read_text(tmp_path, 0.0, "warm.txt", "a.txt", both)
    (resumed,) = read_text(tmp_path, 0.5, both)
    print(*map(json.dumps, [*found, resumed]), sep="\n")
    warm, half, whole = found
    assert whole["documents"] > 2 * half["documents"] - 2 and whole["steps"] > 1.9 * half["steps"]
    assert max(half["peak_mb"], whole["peak_mb"]) - warm["peak_mb"] < 4
    assert resumed["rows"] == whole["rows"] and resumed["documents"] == whole["documents"]
