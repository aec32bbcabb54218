"""Fuzz targets of datagen: API replies and their answers, journals, kits, seeds, benchmark items, prompt templates."""

from __future__ import annotations

import json
from pathlib import Path

from datagen.api.answers import Fatal, Refused, TryAgain, read_response
from datagen.api.chat import Rejected, Reply, make_request
from datagen.api.journal import Journal
from datagen.api.rate_limits import read_headers
from datagen.api.settings import Endpoint
from datagen.benchmark import read_items
from datagen.decontaminate import Benchmarks
from datagen.instruct import read_template
from datagen.kits import KITS_DIR, load_kit
from datagen.kits.rules import read_kit
from datagen.rank import read_responses
from datagen.ranking.format import parse_ranking
from datagen.self_instruct.seed_tasks import read_seeds
from datagen.self_instruct.task_format import Task, parse_tasks
from datagen.translate import read_instructions
from datagen.translation.benchmark_schemas import item_texts, option_faults
from datagen.translation.texts import parse_texts
from engine.base.languages import get_language
from tests.evaluation import made_up
from tests.fuzz.corrupt import any_bytes, frames_file, json_file, jsonl_file
from tests.fuzz.reader import Reader
from tests.launch.small import INSTRUCTIONS

REQUEST = make_request("gpt-4o-mini", 50, [{"role": "user", "content": "नमस्ते"}])
ENDPOINT = Endpoint("https://api.example/v1/chat/completions", "api.example", "MY_KEY", "sk-secret", None)
REPLY = {
    "choices": [{"message": {"content": "hello", "refusal": None}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 7},
}
ERROR = {"error": {"code": "insufficient_quota", "type": None, "message": "because"}}
JOURNAL = [
    {"t": "journal", "v": 1},
    {"t": "sent", "n": 0, "p": 5, "c": 50},
    {"t": "answer", "n": 0, "k": b"k" * 16, "x": "hello", "f": "stop", "p": 5, "c": 7},
    {"t": "refused", "k": b"r" * 16, "x": "no"},
]
TASKS = [Task("Name a fruit.", "", "A pear."), Task("Add", "1 2", "3")]
TEXTS = {"instruction": "Say it", "input": "", "output": "It"}
ITEMS = [made_up.arc(1), made_up.mmlu("anatomy", 2), made_up.hellaswag(3), made_up.truthfulqa(4)]
HEADERS = b"2.5\n100\n10000\n6m0s\nWed, 21 Oct 2026 07:28:00 GMT"
KIT = json.loads((KITS_DIR / "ne.json").read_text(encoding="utf-8"))


def reply(status: int):
    """Return a function that reads a response body with this status: one of four outcomes, whatever the body."""

    def read(path: Path) -> None:
        outcome = read_response(status, path.read_bytes(), REQUEST, ENDPOINT, None)
        assert isinstance(outcome, Reply | TryAgain | Refused | Fatal)
        if isinstance(outcome, Reply):
            outcome.text.encode()

    return read


def answer(parse):
    """Return a function that parses an answer's text; `parse` may raise ValueError and Rejected, in one line."""

    def read(path: Path) -> None:
        try:
            parse(path.read_bytes().decode("utf-8", "replace"))
        except (ValueError, Rejected) as refusal:
            assert "\n" not in str(refusal)

    return read


def journal(path: Path) -> None:
    opened = Journal(path)
    try:
        assert len(opened) >= 0
        opened.answer(b"k" * 16)
        opened.refusal(b"r" * 16)
        assert opened.paid.prompt >= 0
    finally:
        opened.release()


def headers(path: Path) -> None:
    names = ("retry-after", "x-ratelimit-limit-requests", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens")
    lines = path.read_bytes().decode("latin-1").split("\n")
    for line in lines:
        read_headers(dict.fromkeys((*names, "retry-after-ms"), line))


def kit(path: Path) -> None:
    load_kit.cache_clear()
    data, problems = read_kit(path)
    assert problems or data
    assert not any("\n" in problem for problem in problems)
    load_kit("ne", path.parent)


def items(path: Path) -> None:
    for record in read_items([str(path)]):
        item_texts(record["item"])
        option_faults(record["item"])


READERS = {
    "reply 200": Reader(json_file(REPLY), reply(200), "x"),
    "reply 400": Reader(json_file(ERROR), reply(400), "x"),
    "reply 500": Reader(json_file(ERROR), reply(500), "x"),
    "reply headers": Reader(any_bytes(HEADERS), headers, "x"),
    "answer: tasks": Reader(
        jsonl_file([{"number": number, **task._asdict()} for number, task in enumerate(TASKS, 4)]),
        answer(lambda text: parse_tasks(text, 4, 2)),
        "x",
    ),
    "answer: translation": Reader(
        json_file(TEXTS), answer(lambda text: parse_texts(Reply(text, "stop", 1, 1), TEXTS)), "x"
    ),
    "answer: ranking": Reader(any_bytes(b"B > A = D > C"), answer(lambda text: parse_ranking(text, 4)), "x"),
    "journal": Reader(frames_file(JOURNAL), journal, "x"),
    "kit": Reader(json_file(KIT), kit, "ne.json"),
    "seeds": Reader(
        jsonl_file([{"instruction": "a", "instances": [{"input": "", "output": "b"}]}, INSTRUCTIONS[0]]),
        read_seeds,
        "x.jsonl",
    ),
    "benchmark items": Reader(json_file(ITEMS), items, "x.json"),
    "texts to translate": Reader(jsonl_file(INSTRUCTIONS), lambda p: read_instructions([str(p)]), "x.jsonl"),
    "responses to rank": Reader(
        jsonl_file([{"id": "a", "instruction": "x", "input": "", "responses": ["a", "b"]}]),
        lambda p: read_responses([str(p)], get_language("ne")),
        "x.jsonl",
    ),
    "benchmarks to avoid": Reader(jsonl_file(ITEMS), lambda p: Benchmarks([str(p)]), "x.jsonl"),
    "prompt template": Reader(any_bytes(b"$examples\n$first ${last} $$ $count\n"), read_template, "x.txt"),
}
