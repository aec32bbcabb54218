"""The simulator: translation of tasks and other texts, rankings, instructions, HTTP, and faults."""

from __future__ import annotations

import asyncio
import functools
import json
import re
import urllib.request

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datagen.__main__ import main
from datagen.embedded import make_embedded
from datagen.kits import kit_codes, load_kit
from datagen.self_instruct.task_format import parse_tasks
from datagen.simulate import Simulator
from datagen.simulate.answers import rank_responses, right_answer, simulated_answer
from datagen.simulate.faults import FAULTS, parse_faults
from datagen.simulate.translation import Translator, recognize_task
from engine.base.errors import UserError
from engine.base.languages import LANGUAGES

EN, NE = load_kit("en"), load_kit("ne")


embedded = functools.cache(functools.partial(make_embedded, size=96))


def ask(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]


@pytest.mark.parametrize("code", [code for code in kit_codes() if code != "en"])
def test_translated_tasks_are_the_same_tasks(code):
    """At least nine tenths of the English kit's tasks become tasks of the language, with the right answer."""
    kit, carried = load_kit(code), 0
    rows = embedded("en").sft[:60]
    for row in rows:
        record = {name: row[name] for name in ("instruction", "input", "output")}
        translated = Translator(EN, kit).record(record)
        assert list(translated) == list(record)
        assert [name for name in record if bool(record[name]) != bool(translated[name])] == []
        task = recognize_task(kit, translated["instruction"], translated["input"])
        if task is not None:
            carried += 1
            assert task.kind == row["kind"]
            assert (translated["output"].split("\n")[0] == task.output) == (
                row["output"].split("\n")[0] == recognize_task(EN, row["instruction"], row["input"]).output
            )
    assert carried >= 0.9 * len(rows)


def test_every_kit_task_is_recognized():
    for code in ("en", "zh", "ar", "ne"):
        kit = load_kit(code)
        for row in embedded(code).heldout[:200]:
            task = recognize_task(kit, row["instruction"], row["input"])
            assert task is not None and (task.kind, task.output) == (row["kind"], row["output"]), row
    assert recognize_task(EN, "Add 3 and cheese.", "") is None
    assert recognize_task(EN, "Tell me about cheese.", "") is None


def test_translation_keeps_keys_numbers_code_urls_and_placeholders():
    record = {
        "instruction": "Write `print(x)` for {user}, 42 times, as on https://a.example/b?c=1.",
        "input": "",
        "output": "```python\nprint('x')  # a comment\n```\nIt prints the value. You can read it [there].",
        "more": ["first option", "second option", 7, None, True],
    }
    request = ask(f"Translate into Nepali.\n{json.dumps(record)}")
    answer = json.loads(simulated_answer(request))
    assert list(answer) == list(record) and answer["input"] == ""
    assert re.findall(r"`[^`]+`|\{\w+\}|42|https://\S+", answer["instruction"]) == [
        *("`print(x)`", "{user}", "42", "https://a.example/b?c=1."),
    ]
    assert answer["output"].startswith("```python\nprint('x')  # a comment\n```\n")
    assert answer["more"][2:] == [7, None, True] and answer["more"][0] != answer["more"][1]
    assert re.search("[\u0900-\u097f]{3}", answer["instruction"]) and "prints" not in answer["output"]
    assert simulated_answer(request) == simulated_answer(request)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=5))
def test_different_texts_stay_different_and_empty_texts_empty(texts):
    translated = Translator(EN, NE).record(texts)
    for text, there in zip(texts, translated):
        assert bool(text.strip()) == bool(there.strip())
    filled = {text for text in texts if text.strip()}
    assert len({there for text, there in zip(texts, translated) if text.strip()}) == len(filled)


@pytest.mark.parametrize("code", ["vi", "ar", "zh"])
def test_prompt_selects_the_language(code):
    name = LANGUAGES[code].name
    words = load_kit(code).words
    answer = json.loads(simulated_answer(ask(f'Translate this from English into {name}: {{"x": "cheese"}}')))
    assert answer["x"] in words
    back = json.loads(simulated_answer(ask(f'Translate this from {name} into English: {{"x": "{answer["x"]}"}}')))
    assert set(back["x"].split()) <= {part for word in EN.words for part in word.split()}


def test_ranking_puts_right_answers_first_and_empty_ones_last():
    for row in embedded("ne").ranking[:60]:
        shown = {
            "instruction": row["instruction"],
            "input": row["input"],
            "responses": dict(zip("ABCD", row["responses"])),
        }
        turns = ask(f"Translate from Nepali into English: {json.dumps(shown)}", "{}", "Now rank them.")
        ranking = [group.split(" = ") for group in simulated_answer(turns).split(" > ")]
        place = {name: place for place, group in enumerate(ranking) for name in group}
        assert sorted(place) == list("ABCD")
        ranks, right = dict(zip("ABCD", row["ranks"])), right_answer(row["instruction"], row["input"])
        assert right in row["responses"]
        for a in "ABCD":
            for b in "ABCD":
                right = (
                    ranks[a] == 1 or right_answer(row["instruction"], row["input"]) == row["responses"]["ABCD".index(a)]
                )
                if right and ranks[a] < ranks[b]:
                    assert place[a] < place[b]
                if row["responses"]["ABCD".index(a)] == row["responses"]["ABCD".index(b)]:
                    assert place[a] == place[b]
    assert rank_responses([{"responses": {"A": "", "B": "some", "C": "some"}}]) == "B = C > A"


def test_instructions_have_the_requested_numbers():
    answer = simulated_answer(ask("Invent tasks. The examples are numbers 1 to 3; yours are numbers 4 to 23."))
    parsed = parse_tasks(answer, first=4, count=20)
    assert [number for number, _ in parsed.tasks] == list(range(4, 24)) and not parsed.dropped
    assert simulated_answer(ask("Invent tasks: numbers 4 to 23, once more.")) != answer


def test_http_answers_limits_and_counters():
    async def go():
        async with Simulator(requests_per_min=2) as server:
            statuses, headers = [], None
            for _ in range(3):
                status, headers = await asyncio.to_thread(post, server.url, ask("Invent tasks"))
                statuses.append(status)
            assert statuses == [200, 200, 429] and int(headers["retry-after-ms"]) > 50_000
            counts = json.loads(await asyncio.to_thread(get, server.url.removesuffix("v1") + "counts"))
            assert (counts["requests"], counts["over_limit"], list(counts["answers"].values())) == (3, 1, [2])

    asyncio.run(go())


OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get(url):
    return OPENER.open(url, timeout=5).read()


def post(url, messages):
    body = json.dumps({"model": "m", "messages": messages, "max_tokens": 9}).encode()
    try:
        with OPENER.open(urllib.request.Request(f"{url}/chat/completions", body), timeout=5) as response:
            return response.status, response.headers
    except urllib.error.HTTPError as error:
        return error.code, error.headers


def test_faults_depend_on_seed_and_attempt():
    async def statuses(seed):
        async with Simulator(faults={"500": 0.5}, seed=seed) as server:
            return [(await asyncio.to_thread(post, server.url, ask(f"x {n % 6}")))[0] for n in range(18)]

    first = asyncio.run(statuses(1))
    assert asyncio.run(statuses(1)) == first
    assert asyncio.run(statuses(2)) != first
    assert first[:6] != first[6:12] and set(first) == {200, 500}


def test_parse_faults():
    assert parse_faults("429:0.1, hang:0.01") == {"429": 0.1, "hang": 0.01}
    assert parse_faults("401") == {"401": 1.0}
    assert parse_faults("") == {}
    for bad, says in (("hung:0.1", "unknown fault 'hung'"), ("429:x", "'x' is not a number"), ("429:2", "the share 2")):
        with pytest.raises(UserError, match=re.escape(says)):
            parse_faults(bad)
    with pytest.raises(UserError, match="add up to 1.2"):
        parse_faults("429:0.6,500:0.6")
    assert len(FAULTS) >= 35


def test_port_in_use_is_one_line(capsys):
    async def go():
        async with Simulator() as server:
            port = server.url.split(":")[2].split("/")[0]
            return await asyncio.to_thread(main, ["simulate", "--port", port])

    assert asyncio.run(go()) == 2
    assert re.search(r"cannot listen on --port \d+ \(Address already in use\): choose another", capsys.readouterr().err)
