"""`instruct` through the simulator: kept tasks and their order, unchanged by faults and restarts."""

from __future__ import annotations

import asyncio
import json

import pytest

from datagen.__main__ import main
from datagen.api.chat import Rejected, Reply
from datagen.instruct import TEMPLATE_FILE, make_prompt, make_work, read_template
from datagen.rouge_filter import find_rejections
from datagen.self_instruct.seed_tasks import SEEDS_FILE, read_seeds
from datagen.self_instruct.task_filters import fault_of
from datagen.self_instruct.task_format import Task, format_tasks
from datagen.simulate.answers import simulated_answer
from engine.base.errors import UserError
from engine.base.records import write_jsonl
from tests.datagen.serving import serving

SEEDS = read_seeds(SEEDS_FILE)


def _instruct(simulator, output, target, *more):
    url = simulator.url if simulator else "http://127.0.0.1:9/v1"
    argv = ["instruct", "--output", str(output), "--target", str(target), "--base-url", url, "--budget", "1"]
    return main([*argv, *map(str, more)])


def _rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_kept_tasks_pass_all_rules_and_a_restart_sends_no_requests(tmp_path, capsys):
    output = tmp_path / "new.jsonl"
    with serving() as simulator:
        assert _instruct(simulator, output, 60) == 0
        rows = _rows(output)
        assert len(rows) == 60
        assert {tuple(row) for row in rows} == {("id", "instruction", "input", "output", "lang", "source")}
        assert all(fault_of(Task(row["instruction"], row["input"], row["output"])) is None for row in rows)
        seeds = [seed.task.instruction for seed in SEEDS]
        assert list(find_rejections(seeds, [row["instruction"] for row in rows])) == []
        order = [tuple(map(int, row["id"].split("-"))) for row in rows]
        assert order == sorted(order)

        asked, first = simulator.counts.requests, output.read_bytes()
        assert _instruct(simulator, output, 60) == 0
        assert simulator.counts.requests == asked
        assert output.read_bytes() == first
        assert _instruct(simulator, output, 25) == 0
        assert _rows(output) == rows[:25]
    rejected = _rows(tmp_path / "new.jsonl.rejected.jsonl")
    reasons = {row["reason"] for row in rejected}
    assert "near duplicate" in reasons
    near = [row for row in rejected if row["reason"] == "near duplicate"]
    assert all(row["rouge_l"] > 0.7 and row["nearest"] and row["nearest_at"] for row in near)
    assert "25  kept" in capsys.readouterr().err


def test_result_does_not_depend_on_faults_or_answer_order(tmp_path):
    calm, rough = tmp_path / "calm.jsonl", tmp_path / "rough.jsonl"
    with serving() as simulator:
        assert _instruct(simulator, calm, 80, "--concurrency", 1) == 0
    with serving(faults={"500": 0.2, "reset_half": 0.1}, latency_s=0.01) as simulator:
        assert _instruct(simulator, rough, 80, "--concurrency", 20) == 0
    assert rough.read_bytes() == calm.read_bytes()


def test_tasks_from_the_pool_or_a_benchmark_are_rejected(tmp_path, capsys):
    plain, output = tmp_path / "plain.jsonl", tmp_path / "new.jsonl"
    with serving() as simulator:
        assert _instruct(simulator, plain, 40) == 0
        rows = _rows(plain)
        write_jsonl(tmp_path / "pool.jsonl", [{"instruction": rows[0]["instruction"]}])
        secret = next(row for row in rows[1:] if len(row["output"].split()) > 15)
        write_jsonl(tmp_path / "bench.jsonl", [{"question": secret["output"], "choices": ["a", "b"]}])
        flags = ["--pool", tmp_path / "pool.jsonl", "--decontaminate", tmp_path / "bench.jsonl"]
        assert (
            _instruct(
                simulator, output, 40, *flags, "--journal", f"{plain}.journal", "--rejected", tmp_path / "no.jsonl"
            )
            == 0
        )
    why = {row["id"]: row for row in _rows(tmp_path / "no.jsonl")}
    assert why[rows[0]["id"]]["nearest_at"] == f"{tmp_path / 'pool.jsonl'}:1"
    assert why[secret["id"]]["reason"] == "overlaps a benchmark"
    assert why[secret["id"]]["where"] == "1 question"
    assert "dropped: 13 words in a row from" in capsys.readouterr().err


def test_useless_answers_stop_the_run(tmp_path, capsys):
    output = tmp_path / "new.jsonl"
    with serving(answer=lambda messages, seed: "I would rather not.") as simulator:
        assert _instruct(simulator, output, 2000) == 2
        assert simulator.counts.requests == 50
    err = capsys.readouterr().err
    assert "no task kept from 50 requests" in err
    quarantine = _rows(tmp_path / "new.jsonl.quarantine.jsonl")
    assert len(quarantine) == 50
    assert quarantine[0]["reason"] == "no task in the answer (text that is no task)"


def test_retry_quarantined_sends_the_request_again(tmp_path):
    output = tmp_path / "new.jsonl"
    first_answer = iter([True])

    def answer(messages, seed):
        return "Sorry." if next(first_answer, False) else simulated_answer(messages, seed)

    with serving(answer=answer) as simulator:
        assert _instruct(simulator, output, 30, "--concurrency", 1) == 0
        assert [row["index"] for row in _rows(tmp_path / "new.jsonl.quarantine.jsonl")] == [0]
        assert _instruct(simulator, output, 30, "--retry-quarantined") == 0
    assert not (tmp_path / "new.jsonl.quarantine.jsonl").exists()
    assert _rows(output)[0]["id"].startswith("0-")


def test_dry_run_prints_a_plan_and_sends_no_requests(tmp_path, capsys):
    assert _instruct(None, tmp_path / "new.jsonl", 120, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "en" in out.split()
    assert "assuming that 60% of the tasks are kept" in out
    assert list(tmp_path.iterdir()) == []


def _work_on(text, finish_reason="stop"):
    async def ask(messages, nonce=None, **params):
        assert nonce == "7/5"
        return Reply(text, finish_reason, 1, 1)

    return asyncio.run(make_work(read_template(TEMPLATE_FILE), SEEDS, 7)({"request": 5}, ask))


def test_extra_and_cut_tasks_are_dropped():
    tasks = [Task(f"Name {n} red fruits", "", "a") for n in range(25)]
    rows = _work_on(format_tasks(tasks, 4))
    assert [row["id"] for row in rows[:20]] == [f"5-{n}" for n in range(4, 24)]
    assert [row["reason"] for row in rows[20:]] == ["more than were asked for"] * 5
    rows = _work_on(format_tasks(tasks[:3], 4)[:-5], "length")
    assert [row.get("reason") for row in rows] == [None, None, "cut off"]
    with pytest.raises(Rejected, match="no task in the answer"):
        _work_on('{"number": 4, "ins', "length")


def test_prompt_shows_three_seeds_and_asks_for_twenty():
    prompt = make_prompt(read_template(TEMPLATE_FILE), SEEDS, 0, 3)
    shown = [json.loads(line) for line in prompt.splitlines() if line.startswith("{")]
    assert [row["number"] for row in shown] == [1, 2, 3]
    assert {row["instruction"] for row in shown} <= {seed.task.instruction for seed in SEEDS}
    assert "numbers 4 to 23" in prompt
    assert "$" not in prompt.split("\n\n")[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Write $n tasks: $examples $first $last", r"has \$n: the names are \$examples"),
        ("Write tasks $first $last", r"lacks \$examples"),
        ("For $5 write $examples $first $last", r"has a \$ without a name"),
        (None, "No such file"),
        (b"\xff", "is not UTF-8"),
    ],
)
def test_invalid_template_is_refused(tmp_path, text, message):
    path = tmp_path / "t.txt"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        read_template(path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target", "0"], "--target 0 must be 1 or more"),
        (["--seeds", "none.jsonl"], "none.jsonl: there is no such file"),
        (["--pool", "bad.jsonl"], "bad.jsonl:2: field 'instruction' is missing"),
        (["--decontaminate", "none.json"], "none.json: there is no such file"),
        (["--rejected", "new.jsonl"], "--rejected new.jsonl is also another file of this command"),
        (["--output", "new.csv"], "--output new.csv: the name must end in .jsonl"),
        (["--template", "none.txt"], "--template none.txt: No such file"),
    ],
)
def test_user_errors_are_one_line_before_any_request(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    write_jsonl("bad.jsonl", [{"instruction": "a b c"}, {"input": ""}])
    assert _instruct(None, "new.jsonl", 5, *flags) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


def test_help_fits_a_screen(capsys):
    with pytest.raises(SystemExit):
        main(["instruct", "--help"])
    out = capsys.readouterr().out
    assert "example: python -m datagen instruct" in out
    assert len(out.splitlines()) <= 45
