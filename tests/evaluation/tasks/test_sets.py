"""Tasks in the published formats of other sets: their prompts under strict, bad records, file names, subsets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.base.errors import UserError
from evaluation.__main__ import job
from evaluation.coverage import table
from evaluation.data.files import HubData, LocalData, open_data
from evaluation.data.items import Unlabelled
from evaluation.data.prompt_words import ENGLISH
from evaluation.data.sets import OKAPI, SETS
from evaluation.lint import lint
from evaluation.protocols import PROTOCOLS
from evaluation.results.manifest import task_manifest
from evaluation.results.records import record_of
from evaluation.results.summary import summarise
from evaluation.scoring.build import build
from evaluation.tasks import METRICS, all_tasks, get_tasks
from tests.evaluation.made_up import byte_ids, byte_tokenizer, llama_ids, llama_tokenizer, write
from tests.evaluation.made_up_sets import MAKERS, make, sentences

NEW = [task for task in all_tasks().values() if task.folder in MAKERS]


def run(folder, task, lang, protocol="strict", tokenizer=None, **options):
    tokenizer = tokenizer or byte_tokenizer()
    return build(get_tasks([task])[0], lang, LocalData(folder), tokenizer, PROTOCOLS[protocol], 10_000, **options)


def test_every_set_has_a_folder_of_tasks_and_records():
    assert {task.folder for task in NEW} == set(MAKERS) == {name for name in SETS if not name.startswith("m_")}
    assert {task.folder for task in all_tasks().values()} == set(SETS)


@pytest.mark.parametrize("task", NEW, ids=lambda task: task.name)
def test_every_language_of_a_set_can_be_evaluated(task, tmp_path):
    """Under each protocol of the task, in each language of the set, with shots where the task takes them."""
    assert set(task.metrics) <= set(METRICS)
    protocols = {name.split("/")[0] for name in task.forms}
    assert protocols in ({"strict", "lm-eval"}, {"strict"})
    for lang in SETS[task.folder].names:
        if lang == "en":  # English has no kit
            assert all(task.form(protocol, lang) for protocol in protocols)
            continue
        make(tmp_path, task.folder, lang, size=16)
        for protocol in protocols:
            shots = 0 if task.form(protocol, lang).fixed_shots else 1
            built = run(tmp_path, task.name, lang, protocol, shots=shots, limit=2)
            document = built.documents[0]
            assert len(document.shot_ids) == shots
            assert len({choice.text for choice in document.choices}) == len(document.choices) >= 2
            assert "equal_options" not in built.counts


def test_letters_and_cloze_of_one_question(tmp_path):
    make(tmp_path, "belebele", "ne")
    (record,) = json.loads((tmp_path / "belebele/ne_test.json").read_text())[:1]
    passage, question = record["flores_passage"].strip(), record["question"].strip()
    answers = [record[f"mc_answer{n}"] for n in range(1, 5)]
    letters = run(tmp_path, "belebele", "ne").documents[0]
    lines = "\n".join(f"{letter}. {answer}" for letter, answer in zip("ABCD", answers))
    assert letters.prompt == f"{passage}\n{question}\n{lines}\nउत्तर:"
    assert [choice.text for choice in letters.choices] == [" A", " B", " C", " D"]
    cloze = run(tmp_path, "belebele_cloze", "ne").documents[0]
    assert cloze.prompt == f"प्रश्न: {passage}\n{question}\nउत्तर:"
    assert [choice.text for choice in cloze.choices] == [f" {answer}" for answer in answers]
    assert letters.id == cloze.id == "https://made.up/0/1" and letters.gold == cloze.gold == 0


def test_xcopa_puts_the_connector_of_cause_or_effect_after_the_premise(tmp_path):
    make(tmp_path, "xcopa", "vi")
    cause, effect = run(tmp_path, "xcopa", "vi", limit=2).documents
    first, second, third = sentences("vi")[:3]
    assert cause.prompt == f"{first[:-1]} bởi vì" and effect.prompt == f"{second[:-1]} vì vậy"
    assert cause.choices[0].text == f" {second[0].lower()}{second[1:]}"
    lettered = run(tmp_path, "xcopa_letters", "vi", limit=1).documents[0]
    assert lettered.prompt == f"{cause.prompt}\nA. {second}\nB. {third}\nTrả lời:"
    with pytest.raises(UserError, match="task xcopa has no words for --lang ne: choose from zh, it, vi, id, ta"):
        get_tasks(["xcopa"])[0].form("strict", "ne")


@pytest.mark.parametrize("protocol", ["strict", "lm-eval"])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_an_empty_context_is_bos(tmp_path, protocol, adds_bos):
    """Whether or not the tokenizer adds BOS, and the manifest says so."""
    write(tmp_path, "multiblimp/en_train", [{"sen": "It is so.", "wrong_sen": "It are so."}])
    built = run(tmp_path, "multiblimp", "en", protocol, llama_tokenizer(adds_bos))
    good, bad = built.documents[0].choices
    assert good.context_ids == bad.context_ids == (1,)
    assert list(good.continuation_ids) == [259, *llama_ids("It is so.")]
    assert (good.text, built.documents[0].gold, built.documents[0].prompt) == ("It is so.", 0, "")
    assert task_manifest(built, {})["empty_context"] == "<s>"


@pytest.mark.parametrize("protocol", ["strict", "lm-eval"])
def test_an_empty_context_is_eos_without_bos(tmp_path, protocol):
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    write(tmp_path, "multiblimp/en_train", [{"sen": "It is so.", "wrong_sen": "It are so."}])
    built = run(tmp_path, "multiblimp", "en", protocol, tokenizer)
    assert built.documents[0].choices[0].context_ids == (2,)
    assert list(built.documents[0].choices[0].continuation_ids) == byte_ids("It is so.")
    assert task_manifest(built, {})["empty_context"] == "</s>"


def test_a_sentence_that_begins_with_bos_gets_no_second_one(tmp_path):
    write(tmp_path, "multiblimp/en_train", [{"sen": "<s>Yes.", "wrong_sen": "No."}])
    good, bad = run(tmp_path, "multiblimp", "en", "lm-eval").documents[0].choices
    assert (good.context_ids, list(good.continuation_ids)) == ((1,), byte_ids("Yes."))
    assert (bad.context_ids, list(bad.continuation_ids)) == ((1,), byte_ids("No."))


def test_a_context_with_text_is_not_named_in_the_manifest(tmp_path):
    make(tmp_path, "belebele", "ne")
    assert "empty_context" not in task_manifest(run(tmp_path, "belebele", "ne"), {})


def test_culturally_sensitive_and_agnostic_questions_are_reported_apart(tmp_path):
    make(tmp_path, "global_mmlu_full", "ne")
    built = run(tmp_path, "global_mmlu_full", "ne", shots=0)
    records = [record_of(d, [0.0 if n == d.gold else -1.0 for n in range(4)], ("acc",)) for d in built.documents]
    for record in records:
        record["scores"]["acc"] = float(record.get("subset") == "culturally_agnostic")
    lines = {line.name: line for line in summarise("g", "ne", ("acc",), built.task.groups, "documents", records)}
    sensitive, agnostic = lines["g_ne_culturally_sensitive"], lines["g_ne_culturally_agnostic"]
    assert sensitive.apart and agnostic.apart and not lines["g_ne"].apart
    assert (sensitive.count, agnostic.count, lines["g_ne"].count) == (6, 6, 18)
    assert (sensitive.metrics["acc"].value, agnostic.metrics["acc"].value) == (0.0, 1.0)


def test_shots_of_a_subject_come_from_dev(tmp_path):
    make(tmp_path, "global_mmlu_full", "ne")
    for document in run(tmp_path, "global_mmlu_full", "ne", "lm-eval", shots=2).documents:
        assert len(document.shot_ids) == 2
        assert all(name.startswith(f"{document.subject}/") and int(name.split("/")[2]) >= 100
                   for name in document.shot_ids)  # fmt: skip


def test_first_shots_leave_the_question_out(tmp_path):
    make(tmp_path, "belebele", "ne", size=3)
    built = run(tmp_path, "belebele", "ne", "lm-eval", shots=2)
    ids = [document.id for document in built.documents]
    assert [list(document.shot_ids) for document in built.documents] == [ids[1:], [ids[0], ids[2]], ids[:2]]
    with pytest.raises(UserError, match="needs 3 shots from test, which has 3"):
        run(tmp_path, "belebele", "ne", "lm-eval", shots=3)


def test_published_file_names_are_read(tmp_path):
    for lang, name in (("ne", "npi_Deva"), ("hi", "data/hin_Deva")):
        make(tmp_path, "belebele", lang)
        rows = json.loads((tmp_path / f"belebele/{lang}_test.json").read_text())
        path = tmp_path / f"belebele/{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / f"belebele/{lang}_test.json").unlink()
        built = run(tmp_path, "belebele", lang)
        assert built.sources[0].name == f"belebele/{name}.jsonl"
    report = lint(tmp_path)
    assert set(report.counts) == {("belebele", "test", "ne"), ("belebele", "test", "hi")}
    assert not [finding for finding in report.findings if finding.is_error]


def test_one_file_of_all_languages(tmp_path):
    for lang in ("ne", "mr"):
        make(tmp_path, "indicparam", lang)
    files = [tmp_path / f"indicparam/{lang}_test.json" for lang in ("ne", "mr")]
    rows = [row for file in files for row in json.loads(file.read_text())[:5]]
    for file in files:
        file.unlink()
    write(tmp_path, "indicparam/test", rows)
    for lang, part in (("ne", rows[:5]), ("mr", rows[5:])):
        prompts = [document.prompt for document in run(tmp_path, "indicparam", lang, "lm-eval").documents]
        assert [row["question_text"] in prompt for row, prompt in zip(part, prompts, strict=True)] == [True] * 5


def test_eurogest_compares_the_stereotyped_gender_with_the_other(tmp_path):
    """Its published file: stereotypes 1 to 7 are about women, 8 to 16 about men, and some rows have no two forms."""
    (tmp_path / "eurogest").mkdir()
    (tmp_path / "eurogest/French.csv").write_text(
        ",GEST_ID,Source,Stereotype_ID,Masculine,Feminine,Neutral\n"
        "0,12,x,7.0,Je suis beau.,Je suis belle.,\n1,40,x,8,Je suis fort.,Je suis forte.,\n2,41,x,8,,,Je gagne.\n"
    )
    built = run(tmp_path, "eurogest", "fr")
    women, men = built.documents
    assert [choice.text for choice in women.choices] == ["Je suis belle.", "Je suis beau."]
    assert [choice.text for choice in men.choices] == ["Je suis fort.", "Je suis forte."]
    assert [(d.id, d.subject, d.subset) for d in (women, men)] == [("12", "women", "beautiful"), ("40", "men", "tough")]
    assert built.counts["unlabelled"] == 1


def test_the_hub_is_for_okapis_sets_only():
    with pytest.raises(UserError, match="belebele is read from files only"):
        HubData().has("belebele", "ne", "test")
    assert isinstance(open_data("hub"), HubData)


BAD = [
    ("belebele", "ne", {"correct_answer_num": "5"}, "field 'correct_answer_num' is '5', the options are 1 to 4"),
    ("belebele", "ne", {"mc_answer3": ""}, "field 'mc_answer3' is ''"),
    ("belebele", "ne", {"flores_passage": 3}, "field 'flores_passage' is 3"),
    ("xcopa", "vi", {"question": "why"}, "field 'question' is 'why', it must be cause or effect"),
    ("xcopa", "vi", {"label": 2}, "field 'label' is 2, the options are 0 to 1"),
    ("xstorycloze", "te", {"answer_right_ending": 0}, "field 'answer_right_ending' is 0, the options are 1 to 2"),
    ("xstorycloze", "te", {"input_sentence_2": None}, "field 'input_sentence_2' is missing"),
    ("xnli", "hi", {"label": True}, "field 'label' is True, the options are 0 to 2"),
    ("xnli", "hi", {"hypothesis": " "}, "field 'hypothesis' is ' '"),
    ("global_mmlu_full", "ne", {"answer": "E"}, "field 'answer' is 'E', the options are A to D"),
    ("global_mmlu_full", "ne", {"cultural_sensitivity_label": "X"}, "'cultural_sensitivity_label' is 'X'"),
    ("global_mmlu_full", "ne", {"cultural_sensitivity_label": [1]}, "'cultural_sensitivity_label' is [1]"),
    ("include", "ne", {"option_d": None}, "the record has 3 options, it must have option_a to option_d"),
    ("include", "ne", {"domain": None}, "field 'domain' is missing"),
    ("global_piqa_parallel", "kn", {"solution3": None}, "field 'solution3' is missing"),
    ("indicparam", "ne", {"correct_answer": "e"}, "field 'correct_answer' is 'e', the options are A to D"),
    ("multiblimp", "hr", {"wrong_sen": 1}, "field 'wrong_sen' is 1"),
    ("multiblimp", "hr", {"phenomenon": 1}, "field 'phenomenon' is 1"),
    ("eurogest", "fr", {"Stereotype_ID": 17}, "field 'Stereotype_ID' is 17: give 1 to 16"),
    ("eurogest", "fr", {"Stereotype_ID": "2.5"}, "field 'Stereotype_ID' is '2.5': give 1 to 16"),
]


@pytest.mark.parametrize(("task", "lang", "change", "message"), BAD)
def test_error_of_a_bad_record_names_file_line_and_field(tmp_path, task, lang, change, message):
    make(tmp_path, task, lang)
    name = f"{task}/{lang}_{get_tasks([task])[0].part}"
    rows = json.loads((tmp_path / f"{name}.json").read_text())
    rows[1] |= change
    write(tmp_path, name, rows)
    with pytest.raises(UserError) as error:
        run(tmp_path, task, lang, shots=0)
    path, line, _ = str(error.value).split(":", 2)
    assert path == str(tmp_path / f"{name}.json") and int(line) > 2
    assert message in str(error.value) and "\n" not in str(error.value)
    assert run(tmp_path, task, lang, shots=0, skip_bad=True).counts["bad_records"] == 1


@pytest.mark.parametrize("name", MAKERS)
def test_any_value_in_any_field_gives_an_item_or_one_line(name):
    """An item that is read can be formatted by every form, and encoded."""
    maker, _ = MAKERS[name]
    lang = next(lang for lang in SETS[name].names if lang != "en")
    good = maker(lang, 0)
    values = (1, -7, 1.5, True, "", " ", "x", "\ud800", [], ["a"], {}, {"a": 1}, 10**30)
    for task in (task for task in NEW if task.folder == name):
        for field, value in ((field, value) for field in good for value in values):
            try:
                item = task.read({**good, field: value}, "FILE:1", 0)
            except Unlabelled:
                continue
            except UserError as error:
                assert "\n" not in str(error) and str(error).startswith("FILE:1: ") and field in str(error), error
                continue
            for key in task.forms:
                form = task.forms[key]
                texts = (item.id, form.header(item), form.question(item, ENGLISH), *form.options(item))
                assert "".join(texts).encode() and item.gold < len(form.options(item))


def test_a_record_without_an_answer_is_left_out(tmp_path):
    make(tmp_path, "xnli", "hi")
    rows = json.loads((tmp_path / "xnli/hi_validation.json").read_text())
    rows[0]["label"], rows[1]["label"] = -1, None
    write(tmp_path, "xnli/hi_validation", rows)
    assert run(tmp_path, "xnli", "hi").counts["unlabelled"] == 2


def test_the_table_of_languages_in_the_docs_is_the_commands(capsys):
    root = Path(__file__).parents[3]
    assert table() in (root / "docs/evaluation.md").read_text()
    assert table().splitlines()[-1].count("26") == 1 + sum(set(OKAPI) <= set(s.names) for s in SETS.values())
    with pytest.raises(SystemExit, match="0"):
        job(["coverage"])
    assert capsys.readouterr().out == table() + "\n"
