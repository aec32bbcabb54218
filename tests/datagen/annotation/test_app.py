"""The annotation server over HTTP: save, reload, crash, two tabs, ties, edits, skips, flags, and the rankings."""

from __future__ import annotations

import json

import pytest

from datagen.annotation.journal import Journal, Judgement
from datagen.annotation.prompts import read_prompts
from datagen.annotation.results import report, write_rankings
from engine.base.errors import UserError
from engine.base.records import read_rankings
from tests.datagen.annotation.pages import ROWS, judge, prompt, with_client, write_answers

CAPITALS = {"الرباط": 1, "الدار البيضاء": 2, "فاس": 3}


@pytest.fixture
def folder(tmp_path):
    write_answers(tmp_path)
    return tmp_path


def rankings(folder):
    """Write the rankings and read them as launch/reward.py does."""
    prompts, _ = read_prompts(folder / "responses.jsonl")
    with Journal(folder / "out.jsonl.judgements.jsonl") as journal:
        written, left_out = write_rankings(folder / "out.jsonl", prompts, journal.last)
        found = report(prompts, journal.last)
    records = list(read_rankings(folder / "out.jsonl")) if written else []
    assert len(records) == written
    return records, left_out, found


def test_a_ranking_is_saved_at_once_and_found_after_a_reload_and_a_restart(folder):
    async def rank(client):
        seen = await prompt(client, "Ada")
        assert (seen["id"], seen["done"], seen["total"], seen["revision"]) == ("ar", 0, 3, 0)
        assert await judge(client, seen, by_text=CAPITALS) == (200, await prompt(client, "Ada", at=0))
        (line,) = (folder / "out.jsonl.judgements.jsonl").read_text().splitlines()
        assert json.loads(line)["ranks"] == [1, 2, 3]  # in the order of the file, whatever was shown

    async def reload(client):
        seen = await prompt(client, "Ada", at=0)
        assert dict(zip(seen["answers"], seen["judgement"]["ranks"])) == CAPITALS
        following = await prompt(client, "Ada")
        assert (following["id"], following["done"]) == ("ne", 1)
        assert (await prompt(client, "Ben"))["done"] == 0

    with_client(folder, rank)
    with_client(folder, reload)
    (record,), _, _ = rankings(folder)
    assert (record.id, record.responses, record.ranks) == ("ar/Ada", tuple(CAPITALS), (1, 2, 3))


def test_the_order_shown_depends_on_annotator_and_seed_and_repeats(folder):
    orders = {}
    for name in "ABCDEFGHIJ":
        for seed in (0, 1):
            state = with_client(folder, lambda client, name=name: prompt(client, name, at=0), seed=seed)
            assert sorted(state["answers"]) == sorted(CAPITALS)
            orders[name, seed] = tuple(state["shown"])
            assert with_client(folder, lambda c, name=name: prompt(c, name, at=0), seed=seed) == state
    assert len({orders[name, 0] for name in "ABCDEFGHIJ"}) > 2
    assert any(orders[name, 0] != orders[name, 1] for name in "ABCDEFGHIJ")


def test_a_line_torn_by_a_crash_is_read_past_and_the_next_one_is_whole(folder):
    kept = folder / "out.jsonl.judgements.jsonl"

    async def rank(client):
        for _ in range(2):
            seen = await prompt(client, "Ada")
            ranks = list(range(1, len(seen["answers"]) + 1))
            assert (await judge(client, seen, ranks=ranks))[0] == 200

    with_client(folder, rank)
    whole = kept.read_bytes()
    for cut in (1, 20, len(whole.splitlines()[1]) - 1):
        kept.write_bytes(whole[:-cut])

        async def go_on(client, cut=cut):
            seen = await prompt(client, "Ada")
            assert (seen["id"], seen["done"]) == (("talk", 2) if cut == 1 else ("ne", 1))
            assert (await judge(client, seen, "skip"))[0] == 200

        with_client(folder, go_on)
        with Journal(kept) as journal:
            assert journal.damaged == (cut > 1)
            assert [j.kind for j in journal.last.values()][-1] == "skip"
            assert len(journal.last) == (3 if cut == 1 else 2)


def test_a_prompt_judged_again_keeps_its_last_judgement_after_a_restart(folder):
    async def rank(client):
        await judge(client, await prompt(client, "Ada"), by_text=CAPITALS)
        await judge(client, await prompt(client, "Ada", at=0), by_text={**CAPITALS, "فاس": 1})

    with_client(folder, rank)
    with Journal(folder / "out.jsonl.judgements.jsonl") as journal:
        (last,) = journal.last.values()
        assert (last.revision, last.ranks) == (2, (1, 2, 1))
    (record,), _, _ = rankings(folder)
    assert record.ranks == (1, 2, 1)


def test_a_disk_that_takes_a_line_in_pieces_gets_all_of_it(folder):
    class Slow:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            return self.file.write(bytes(data[:7]))

        def __getattr__(self, name):
            return getattr(self.file, name)

    said = Judgement("key", "Ada", "skip", 1, note="राजधानी")
    kept = folder / "out.jsonl.judgements.jsonl"
    with Journal(kept) as journal:
        journal._file = Slow(journal._file)
        journal.add(said)
    with Journal(kept) as journal:
        assert (list(journal.last.values()), journal.damaged) == ([said], 0)


def test_a_judgement_that_the_disk_refuses_does_not_count(folder, monkeypatch):
    async def rank(client):
        seen = await prompt(client, "Ada")

        def full(handle):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr("datagen.annotation.journal.os.fsync", full)
            status, answer = await judge(client, seen, by_text=CAPITALS)
        assert status == 507
        assert "No space left on device" in answer["error"]
        assert (await prompt(client, "Ada"))["done"] == 0
        status, answer = await judge(client, seen, by_text=CAPITALS)
        assert (status, answer["done"]) == (200, 1)

    with_client(folder, rank)
    assert len(rankings(folder)[0]) == 1


def test_the_second_tab_is_refused_and_shown_what_the_first_saved(folder):
    async def two_tabs(client):
        one, two = await prompt(client, "Ada"), await prompt(client, "Ada")
        assert (await judge(client, one, by_text=CAPITALS))[0] == 200
        status, saved = await judge(client, two, "skip")
        assert (status, saved["revision"], saved["judgement"]["kind"]) == (409, 1, "rank")
        assert dict(zip(saved["answers"], saved["judgement"]["ranks"])) == CAPITALS
        assert (await judge(client, one, by_text=CAPITALS))[0] == 200  # the same again: the reply was lost
        assert (await prompt(client, "Ada", at=0))["revision"] == 1
        status, saved = await judge(client, saved, "skip")  # having seen it
        assert (status, saved["revision"], saved["judgement"]["kind"]) == (200, 2, "skip")

    with_client(folder, two_tabs)
    assert len((folder / "out.jsonl.judgements.jsonl").read_text().splitlines()) == 2


def test_ties_edits_skips_and_flags_in_the_output(folder):
    async def ada(client):
        seen = await prompt(client, "Ada")
        assert (await judge(client, seen, by_text={"الرباط": 1, "الدار البيضاء": 3, "فاس": 3}))[0] == 200
        seen = await prompt(client, "Ada")
        assert seen["turns"] == [{"role": "user", "content": "राजधानी\n\nनेपाल"}]
        assert sorted(seen["answers"]) == ["", "काठमाडौं", "पोखरा"]  # a repeated answer is shown once
        edits = ["म भन्दिनँ" if text == "" else text for text in seen["answers"]]
        ranks = {"काठमाडौं": 1, "": 2, "पोखरा": 3}
        status, saved = await judge(client, seen, by_text=ranks, edits=edits)
        assert status == 200
        assert [e for e in saved["judgement"]["edits"] if e] == ["म भन्दिनँ"]  # an unchanged text is no edit
        assert (await judge(client, await prompt(client, "Ada"), "flag", note="too easy"))[0] == 200
        assert (await prompt(client, "Ada"))["at"] is None

    async def ben(client):
        seen = await prompt(client, " Ben  B ")
        assert seen["annotator"] == "Ben B"
        assert (await judge(client, seen, ranks=[2, 2, 2]))[0] == 200
        assert (await judge(client, await prompt(client, "Ben B"), "skip"))[0] == 200
        assert (await judge(client, await prompt(client, "Ben B"), by_text={"6": 1, "7": 2}))[0] == 200

    with_client(folder, ada)
    with_client(folder, ben)
    records, left_out, found = rankings(folder)
    assert [(r.id, r.responses, r.ranks) for r in records] == [
        ("ar/Ada", ("الرباط", "الدار البيضاء", "فاس"), (1, 2, 2)),
        ("ne/Ada", ("काठमाडौं", "पोखरा", "म भन्दिनँ"), (1, 3, 2)),
        ("talk/Ben B", ("6", "7"), (1, 2)),
    ]
    assert [turn.content for turn in records[2].history] == ["2 + 2?", "4"]
    assert left_out == 1
    assert found.rows() == [["Ada", "2", "0", "1"], ["Ben B", "2", "1", "0"]]
    assert found.flags == [("talk", "Ada", "too easy")]
    assert found.num_shared == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ranks": [1, 2]}, "field 'ranks'"),
        ({"ranks": [1, 2, 4]}, "numbers from 1 to 3"),
        ({"ranks": [1, 2, True]}, "field 'ranks'"),
        ({"ranks": None}, "field 'ranks'"),
        ({"shown": [0, 1, 1]}, "field 'shown'"),
        ({"revision": 0}, "field 'revision'"),
        ({"kind": "like"}, "give rank, skip, flag"),
        ({"annotator": " "}, "'annotator' is empty"),
        ({"annotator": "x" * 61}, "up to 60"),
        ({"edits": [1, None, None]}, "'edits'"),
        ({"edits": ["\ud800", None, None]}, "half a surrogate"),
        ({"key": "gone"}, "load the page again"),
    ],
)
def test_a_wrong_judgement_is_refused_and_nothing_is_saved(folder, changes, words):
    async def wrong(client):
        status, answer = await judge(client, await prompt(client, "Ada"), **{"ranks": [1, 2, 3], **changes})
        assert status in (400, 404)
        assert words in answer["error"]
        assert (await prompt(client, "Ada"))["done"] == 0

    with_client(folder, wrong)
    assert not (folder / "out.jsonl.judgements.jsonl").read_bytes()


def test_other_sites_and_clients_without_the_key_are_refused(folder):
    async def strangers(client):
        async with client.get("/") as page:
            assert page.status == 200
            assert "default-src 'self'" in page.headers["Content-Security-Policy"]
        async with client.get("/api/prompt", params={"annotator": "Ada"}) as refused:
            assert refused.status == 401
        async with client.post("/api/judge", data="{}", headers={"X-Key": "पासवर्ड"}) as refused:
            assert refused.status == 415
        async with client.get("/api/../secret", headers={"X-Key": "पासवर्ड"}) as refused:
            assert refused.status == 404

    with_client(folder, strangers, api_key="पासवर्ड")


def test_two_servers_do_not_share_a_journal(tmp_path):
    with Journal(tmp_path / "j.jsonl"), pytest.raises(UserError, match="open in another annotate.py"):
        Journal(tmp_path / "j.jsonl")
    with Journal(tmp_path / "j.jsonl"):
        pass


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"responses": ["a", "b"]}, "field 'instruction' is missing"),
        ({"instruction": "x"}, "field 'responses' is missing"),
        ({"instruction": "x", "responses": "ab"}, "must be a list"),
        ({"instruction": "x", "responses": ["a"]}, "has 1: give 2 to 26"),
        ({"instruction": "x", "responses": ["a", 2]}, "'responses[1]'"),
        ({"id": "ar", "instruction": "x", "responses": ["a", "b"]}, "is that of line 1"),
        ({"messages": [{"role": "assistant", "content": "x"}], "responses": ["a", "b"]}, "the user speaks first"),
    ],
)
def test_a_wrong_record_is_one_line_with_its_number(tmp_path, row, words):
    path = write_answers(tmp_path, [ROWS[0], row])
    with pytest.raises(UserError) as error:
        read_prompts(path)
    assert str(error.value).startswith(f"{path}:2: ")
    assert words in str(error.value)


def test_answers_that_are_all_the_same_are_not_shown(tmp_path):
    same = {"instruction": "x", "responses": ["a", "a"]}
    prompts, alike = read_prompts(write_answers(tmp_path, [same, ROWS[0]]))
    assert (len(prompts), alike) == (1, 1)
    with pytest.raises(UserError, match="no prompt with two different answers"):
        read_prompts(write_answers(tmp_path, [same]))
