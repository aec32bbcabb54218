"""The day of docs/human-rankings.md with two simulated annotators: sample, rank, reward model, judge, PPO; offline."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

import pytest

from engine.base.records import read_rankings
from tests.launch import small

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
ENTER = "\ue007"


def launch(folder, script, *flags):
    """Run a command as a user does and return what it prints."""
    command = [sys.executable, str(ROOT / "launch" / script), *map(str, flags)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env={**os.environ})
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def ranks_of(name, seen):
    """Ada likes short answers. Ben does so too, but in every fifth prompt he likes long ones."""
    lengths = sorted({len(answer) for answer in seen["answers"]}, reverse=name == "Ben" and seen["at"] % 5 == 0)
    return [1 + lengths.index(len(answer)) for answer in seen["answers"]]


def next_prompt(address, name):
    with urllib.request.urlopen(f"{address}api/prompt?{urlencode({'annotator': name})}") as reply:
        return json.load(reply)


def rank_over_http(address, name):
    while (seen := next_prompt(address, name))["at"] is not None:
        body = {field: seen[field] for field in ("annotator", "key", "shown")}
        body |= {"kind": "rank", "revision": seen["revision"] + 1, "ranks": ranks_of(name, seen)}
        request = urllib.request.Request(f"{address}api/judge", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request) as reply:
            assert reply.status == 200


def rank_in_browser(address, name):
    """Press the keys of the page; what it shows next is asked from the server, which decides the order."""
    from tests.datagen.annotation.test_browser import BROWSER, DRIVER, open_page, press, text, webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    browser.set_script_timeout(10)
    try:
        open_page(browser, address)
        press(browser, name, ENTER)
        while (seen := next_prompt(address, name))["at"] is not None:
            assert text(browser, "#count") == [f"{seen['done']} of {seen['total']}"]
            press(browser, *map(str, ranks_of(name, seen)), ENTER)
        assert "All questions are done" in text(browser, "#done")[0]
    finally:
        browser.quit()


def has_browser():
    try:
        import selenium  # noqa: F401
    except ImportError:
        return False
    return bool(shutil.which("chromedriver") and (shutil.which("chromium") or shutil.which("google-chrome")))


def annotate(folder, data, output, rank):
    """Serve the page, let Ada and Ben rank everything, press Ctrl-C and return what the command printed."""
    command = [sys.executable, str(ROOT / "launch/annotate.py"), "--data", data, "--output", output, "--port", "0"]
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, env={**os.environ})
    try:
        address = next(line.split()[-1] for line in server.stdout if " open " in line)
        for name in ("Ada", "Ben"):
            rank(address, name)
    finally:
        server.send_signal(signal.SIGINT)
        said, _ = server.communicate(timeout=60)
    assert server.returncode == 0
    return said


@pytest.mark.parametrize("rank", [rank_over_http, rank_in_browser])
def test_the_day(tmp_path, rank):
    if rank is rank_in_browser and not has_browser():
        pytest.skip("needs selenium, chromium and chromium-driver; rank_over_http plays the same day without them")
    small.make_ending_model(tmp_path)
    prompts = [{"id": f"p{i}", "instruction": f"Say {i} in Nepali", "input": ""} for i in range(36)]
    small.write_rows(tmp_path / "prompts.jsonl", prompts[:30])
    small.write_rows(tmp_path / "heldout.jsonl", prompts[30:])
    short = ("--lang", "ne", "--template", "plain", "--max-length", "96")
    for name in ("prompts", "heldout"):
        flags = ("--model", "m", "--data", f"{name}.jsonl", "--max-new-tokens", "12", "--num-responses", "4")
        launch(tmp_path, "sample.py", *short, *flags, "--output", f"{name}-answers.jsonl")

    said = annotate(tmp_path, "prompts-answers.jsonl", "rankings.jsonl", rank)
    alpha = float(said.split("alpha (ordinal) ")[1].split()[0])
    assert 0.2 < alpha < 1, "the annotators disagree in every fifth prompt"
    assert "over 30 prompts that two or more ranked" in said
    names = [record.id.split("/")[1] for record in read_rankings(tmp_path / "rankings.jsonl")]
    assert set(names) == {"Ada", "Ben"} and len(names) > 40
    annotate(tmp_path, "heldout-answers.jsonl", "heldout-rankings.jsonl", rank_over_http)

    data = ("--data", "rankings.jsonl", "--eval-data", "heldout-rankings.jsonl")
    training = ("--top-layers", "1", "--max-steps", "4", "--batch-size", "8", "--lr", "1e-2", "--output", "reward")
    said = launch(tmp_path, "reward.py", *short, "--model", "m", *data, *training)
    assert "held-out pairs in the right order" in said
    said = launch(
        tmp_path, "judge.py", "--reward", "reward/model", "--data", "heldout-rankings.jsonl", "--output", "judged.json"
    )
    assert "the better answer is the longer one in" in said
    assert json.loads((tmp_path / "judged.json").read_text())
    steps = ("--max-steps", "2", "--batch-size", "8", "--minibatch-size", "4", "--max-new-tokens", "12")
    launch(
        tmp_path, "ppo.py", *short, "--model", "m", "--reward", "reward/model", "--data", "prompts.jsonl", *steps,
        "--top-layers", "1", "--output", "ppo",
    )  # fmt: skip
    assert len(small.read_rows(tmp_path / "ppo" / "metrics.jsonl")) >= 2
    assert (tmp_path / "ppo" / "model" / "config.json").exists()
