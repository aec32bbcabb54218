"""Reading records from files in Okapi's layout and from the hub, and refusing files of another language."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import types

import pytest

from engine.base.errors import UserError
from engine.base.languages import LANGUAGES, get_language
from engine.base.scripts import main_script
from evaluation.data.files import HubData, LocalData, open_data
from evaluation.data.scripts import check_script
from evaluation.protocols import PROTOCOLS
from evaluation.scoring.build import build, check_files
from evaluation.tasks import get_tasks
from tests.evaluation.made_up import arc, byte_tokenizer, everything, mmlu, write
from tests.greetings import GREETINGS


def test_source_has_name_hash_and_number_of_records(tmp_path):
    everything(tmp_path)
    source = LocalData(tmp_path).read("m_arc", "en", "test").source
    path = tmp_path / "m_arc/en_test.json"
    assert (source.name, source.num_records) == ("m_arc/en_test.json", 5)
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    built = build(get_tasks(["arc"])[0], "en", LocalData(tmp_path), byte_tokenizer(), PROTOCOLS["okapi"], 9_999)
    assert [source.name for source in built.sources] == ["m_arc/en_test.json", "m_arc/en_train.json"]
    built = build(get_tasks(["hellaswag"])[0], "en", LocalData(tmp_path), byte_tokenizer(), PROTOCOLS["okapi"], 9_999)
    assert [source.name for source in built.sources] == ["m_hellaswag/en_validation.json"]


def test_read_takes_gzip_and_all_names_of_a_part(tmp_path):
    everything(tmp_path)
    rows = [mmlu("anatomy", n) for n in range(3)]
    for name, part in (("val", "validation"), ("train", "dev")):
        (tmp_path / f"m_mmlu/fr_{name}.jsonl.gz").write_bytes(
            gzip.compress("\n".join(json.dumps(row) for row in rows).encode())
        )
        assert [record for _, record in LocalData(tmp_path).read("m_mmlu", "fr", part).rows] == rows


def test_error_of_a_missing_file_lists_existing_ones(tmp_path):
    everything(tmp_path)
    data = LocalData(tmp_path)
    (tmp_path / "m_mmlu/en_test.json").unlink()
    with pytest.raises(UserError, match="en_test.json does not exist: found en_dev.json, en_val.json.*--split"):
        data.read("m_mmlu", "en", "test")
    with pytest.raises(
        UserError, match="ne_test.json does not exist: m_mmlu has en; download it, or choose another --l"
    ):
        data.read("m_mmlu", "ne", "test")
    with pytest.raises(UserError, match="xx/en_test.json does not exist: download it, or give --data-dir the folder"):
        data.read("xx", "en", "test")
    with pytest.raises(UserError, match="is no folder"):
        open_data(tmp_path / "none")
    built = build(get_tasks(["mmlu"])[0], "en", data, byte_tokenizer(), PROTOCOLS["lm-eval"], 9_999, split="validation")
    assert len(built.documents) == 40


def test_shots_from_the_evaluated_part_leave_out_the_question(tmp_path):
    """okapi's MMLU on validation: each question draws its shots from the same forty records."""
    everything(tmp_path)
    task = get_tasks(["mmlu"])[0]
    tokenizer = byte_tokenizer()
    built = build(task, "en", LocalData(tmp_path), tokenizer, PROTOCOLS["okapi"], 99_999, split="validation")
    assert all(document.id not in document.shot_ids for document in built.documents)
    assert len(built.sources) == 1


@pytest.mark.parametrize("code", [code for code in LANGUAGES if "Latn" not in LANGUAGES[code].scripts])
def test_file_in_latin_script_is_refused_for_another_language(code, tmp_path):
    everything(tmp_path, code)
    with pytest.raises(UserError, match=rf"m_arc/{code}_test.json: 0% of its letters.*is it a file of another"):
        build(get_tasks(["arc"])[0], code, LocalData(tmp_path), byte_tokenizer(), PROTOCOLS["strict"], 9_999)


def test_file_in_another_script_is_refused_for_a_latin_language(tmp_path):
    everything(tmp_path, "vi")
    write(tmp_path, "m_arc/vi_test", [{**arc(0), "instruction": GREETINGS["te"]}])
    with pytest.raises(UserError, match="script of Vietnamese"):
        build(get_tasks(["arc"])[0], "vi", LocalData(tmp_path), byte_tokenizer(), PROTOCOLS["strict"], 9_999)


@pytest.mark.parametrize("code", LANGUAGES)
def test_greeting_of_each_language_is_in_its_script(code):
    assert check_script(get_language(code), "file", [GREETINGS[code]]) == get_language(code).scripts[0]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("question", "words"),
    [("Šta je vulkan i zašto nastaje?", "Pitanje:"), ("Шта је вулкан и зашто настаје?", "Питање:")],
)
def test_serbian_prompt_words_follow_the_script(protocol, question, words, tmp_path):
    """The releases' Serbian files are in Latin script. Prompt words follow the script of the file."""
    for part, first in (("test", 0), ("train", 100)):
        rows = [{**arc(n, part=part), "instruction": f"{question} {n}"} for n in range(first, first + 30)]
        write(tmp_path, f"m_arc/sr_{part}", rows)
    task = get_tasks(["arc"])[0]
    built = build(task, "sr", LocalData(tmp_path), byte_tokenizer(), PROTOCOLS[protocol], 9_999, shots=1, limit=2)
    assert question in built.documents[0].prompt
    assert built.documents[0].prompt.startswith(words) is (protocol == "strict")


def test_serbian_in_greek_letters_is_refused():
    with pytest.raises(UserError, match=r"0% of its letters are in the script of Serbian \(Cyrl or Latn\)"):
        check_script(get_language("sr"), "file", ["Τι είναι το ηφαίστειο;"])


def test_real_files_are_in_their_scripts(real_data):
    data = LocalData(real_data)
    for lang in ("ne", "vi", "fr", "te", "zh"):
        questions = [record["question"] for _, record in data.read("m_truthfulqa", lang, "validation").rows]
        assert main_script(get_language(lang).scripts, "".join(questions))[1] > 0.5


def test_error_of_missing_shots_suggests_shots_0(tmp_path):
    """It must not suggest --split, which changes the evaluated part and not the pool of shots."""
    everything(tmp_path)
    (tmp_path / "m_mmlu/en_dev.json").unlink()
    task, data, protocol = get_tasks(["mmlu"])[0], LocalData(tmp_path), PROTOCOLS["strict"]
    message = "en_dev.json does not exist: found .*; download it, or give --shots 0 to evaluate without"
    for call in (lambda: check_files(task, "en", data, protocol), lambda: build_mmlu(task, data, protocol)):
        with pytest.raises(UserError, match=message) as error:
            call()
        assert "--split" not in str(error.value)
    check_files(task, "en", data, protocol, shots=0)
    assert build_mmlu(task, data, protocol, shots=0).documents


def build_mmlu(task, data, protocol, **how):
    return build(task, "en", data, byte_tokenizer(), protocol, 9_999, **how)


def hub_with(monkeypatch, splits: dict[str, list[dict]], error: Exception | None = None) -> None:
    """Replace the datasets library by a fake that has one dataset."""
    library = types.ModuleType("datasets")

    def names(path: str, lang: str) -> list[str]:
        assert (path, lang) == ("alexandrainst/m_mmlu", "ne")
        if error:
            raise error
        return list(splits)

    library.get_dataset_split_names = names
    library.load_dataset = lambda path, lang, split: iter(splits[split])
    monkeypatch.setitem(sys.modules, "datasets", library)


def test_hub_returns_the_records_of_the_file(monkeypatch, tmp_path):
    rows = [{**mmlu("anatomy", n), "option_e": None} for n in range(3)]
    hub_with(monkeypatch, {"train": rows, "val": rows, "test": rows[:2]})
    hub = open_data("hub")
    write(tmp_path, "m_mmlu/ne_test", [{k: v for k, v in row.items() if v is not None} for row in rows[:2]])
    local = LocalData(tmp_path).read("m_mmlu", "ne", "test")
    records = hub.read("m_mmlu", "ne", "test")
    assert [record for _, record in records.rows] == [record for _, record in local.rows]
    assert records.rows[1][0] == "alexandrainst/m_mmlu/ne/test:2"
    assert len(hub.read("m_mmlu", "ne", "dev").rows) == len(hub.read("m_mmlu", "ne", "validation").rows) == 3
    assert hub.has("m_mmlu", "ne", "dev") and not hub.has("m_mmlu", "ne", "other")
    with pytest.raises(UserError, match="has no part .other. in ne: it has train, val, test; choose one with --split"):
        hub.read("m_mmlu", "ne", "other")
    with pytest.raises(UserError, match="in ne: it has test; give --shots 0 to evaluate without its records as shots"):
        hub_with(monkeypatch, {"test": rows})
        check_files(get_tasks(["mmlu"])[0], "ne", hub, PROTOCOLS["strict"])


def test_hub_without_library_or_network_is_an_error_of_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        HubData().read("m_mmlu", "ne", "test")
    hub_with(monkeypatch, {}, ConnectionError("no route\nto the hub"))
    for ask in (HubData().read, HubData().has):
        with pytest.raises(UserError, match="cannot be read: no route; check the network, or give") as error:
            ask("m_mmlu", "ne", "test")
        assert "\n" not in str(error.value)
