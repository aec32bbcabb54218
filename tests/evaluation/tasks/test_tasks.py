"""Tasks: lookup by name, a task in a user's own file, and the checks of records."""

from __future__ import annotations

import pytest

from engine.base.errors import UserError
from evaluation.data.files import LocalData
from evaluation.protocols import PROTOCOLS
from evaluation.scoring.build import build
from evaluation.tasks import METRICS, all_tasks, get_tasks
from evaluation.tasks.mmlu import GROUPS
from tests.evaluation.made_up import arc, byte_tokenizer, everything, hellaswag, mmlu, truthfulqa, write

SPORT_TASK = '''
"""Sport questions."""
from evaluation.data.items import Item, text_of
from evaluation.tasks import Form, Task

def read(record, place, index):
    options = ("yes", "no")
    truth = tuple(int(option == record["right"]) for option in options)
    return Item(str(index), index, text_of(record, "q", place), options, truth, place, record=record)

TASKS = (Task("sport", "sport", "test", ("acc",), read, {"strict": Form(lambda item, words: item.question, 0, ())}),)
'''


def test_okapis_five_tasks_have_a_form_for_every_protocol():
    tasks = {name: task for name, task in all_tasks().items() if task.folder.startswith("m_")}
    assert list(tasks) == ["arc", "hellaswag", "mmlu", "truthfulqa_mc1", "truthfulqa_mc2"]
    for task in tasks.values():
        assert set(task.metrics) <= set(METRICS)
        assert all(task.form(protocol, lang) for protocol in PROTOCOLS for lang in ("en", "ne"))


def test_mmlu_has_57_subjects_in_four_groups():
    subjects = [subject for group in GROUPS.values() for subject in group]
    assert len(GROUPS) == 4 and len(set(subjects)) == len(subjects) == 57
    assert {name: len(group) for name, group in GROUPS.items()} == {
        "humanities": 13,
        "social_sciences": 12,
        "stem": 19,
        "other": 13,
    }


def test_mmlu_subjects_match_the_real_file(real_data):
    names = {record["id"].split("/")[0] for _, record in LocalData(real_data).read("m_mmlu", "en", "test").rows}
    assert names == {subject for group in GROUPS.values() for subject in group}


def test_get_tasks_by_name_and_by_family():
    assert [task.name for task in get_tasks(["mmlu", "truthfulqa"])] == ["mmlu", "truthfulqa_mc1", "truthfulqa_mc2"]
    with pytest.raises(UserError, match="unknown task 'hellaswg': did you mean 'hellaswag'"):
        get_tasks(["hellaswg"])
    with pytest.raises(UserError, match="task 'truthfulqa_mc1' is named twice"):
        get_tasks(["truthfulqa_mc1", "truthfulqa"])


def test_users_task_is_one_file(tmp_path):
    (tmp_path / "sport.py").write_text(SPORT_TASK)
    write(tmp_path, "sport/de_test", [{"q": "Rollt der Ball?", "right": "yes"}])
    (task,) = get_tasks([str(tmp_path / "sport.py")])
    built = build(task, "de", LocalData(tmp_path), byte_tokenizer(), PROTOCOLS["strict"], 100)
    assert [choice.text for choice in built.documents[0].choices] == [" yes", " no"]
    assert built.documents[0].gold == 0
    with pytest.raises(UserError, match="task sport has no part to draw shots from"):
        build(task, "de", LocalData(tmp_path), byte_tokenizer(), PROTOCOLS["strict"], 100, shots=1)
    with pytest.raises(UserError, match="task sport has no form for --protocol okapi: choose from strict"):
        build(task, "de", LocalData(tmp_path), byte_tokenizer(), PROTOCOLS["okapi"], 100)


def test_bad_task_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist: check the path"):
        get_tasks([str(tmp_path / "none.py")])
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match="has no valid TASKS"):
        get_tasks([str(tmp_path / "empty.py")])
    (tmp_path / "wrong.py").write_text(SPORT_TASK.replace('("acc",)', '("accuracy",)'))
    with pytest.raises(UserError, match="metrics .*choose from acc, acc_norm"):
        get_tasks([str(tmp_path / "wrong.py")])
    (tmp_path / "path.py").write_text(SPORT_TASK.replace('"sport"', '"../sport"', 1))
    with pytest.raises(UserError, match="bad task name '../sport': use up to 100 letters"):
        get_tasks([str(tmp_path / "path.py")])


def run(folder, task, protocol="strict", **options):
    tokenizer = byte_tokenizer()
    return build(get_tasks([task])[0], "en", LocalData(folder), tokenizer, PROTOCOLS[protocol], 10_000, **options)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arc_has_three_to_five_options(tmp_path, protocol):
    everything(tmp_path)
    write(tmp_path, "m_arc/en_test", [arc(n, "C", num_options=n) for n in (3, 4, 5)])
    built = run(tmp_path, "arc", protocol, shots=2)
    assert {document.index + 3: len(document.choices) for document in built.documents} == {3: 3, 4: 4, 5: 5}
    assert {document.gold for document in built.documents} == {2}


def test_mmlu_has_as_many_letters_as_options(tmp_path):
    everything(tmp_path)
    write(tmp_path, "m_mmlu/en_test", [{**arc(0, num_options=3), "id": "anatomy/test/0"}])
    for protocol in ("strict", "lm-eval", "leaderboard-v1"):
        document = run(tmp_path, "mmlu", protocol, shots=0).documents[0]
        assert [choice.text for choice in document.choices] == [" A", " B", " C"]


def test_unlabelled_records_are_left_out_and_counted(tmp_path):
    everything(tmp_path)
    unlabelled = [{**arc(0), "answer": None}, {**arc(1), "answer": ""}, arc(2), arc(3)]
    write(tmp_path, "m_arc/en_test", unlabelled)
    built = run(tmp_path, "arc", shots=0)
    assert [document.index for document in built.documents] == [2, 3]
    assert built.counts["unlabelled"] == 2
    write(tmp_path, "m_hellaswag/en_validation", [hellaswag(0, ""), hellaswag(1)])
    assert run(tmp_path, "hellaswag").counts["unlabelled"] == 1
    write(tmp_path, "m_arc/en_test", unlabelled[:2])
    with pytest.raises(UserError, match="m_arc/en_test.json: no record of 2 can be used"):
        run(tmp_path, "arc", shots=0)


def test_equal_options_are_kept_and_counted(tmp_path):
    everything(tmp_path)
    write(tmp_path, "m_arc/en_test", [{**arc(0), "option_c": "thing a0"}, arc(1)])
    for protocol in PROTOCOLS:
        built = run(tmp_path, "arc", protocol, shots=2)
        document = next(document for document in built.documents if document.index == 0)
        assert built.counts["equal_options"] == 1
        assert document.choices[0] == document.choices[2] != document.choices[1]


def test_equal_options_are_counted_if_letters_are_scored(tmp_path):
    everything(tmp_path)
    write(tmp_path, "m_mmlu/en_test", [{**mmlu("anatomy", 0), "option_b": "thing a0"}, mmlu("virology", 0)])
    assert run(tmp_path, "mmlu").counts["equal_options"] == 1


BAD = {
    "m_arc/en_test": [
        ({**arc(0), "option_b": ""}, "field 'option_b' is ''"),
        ({**arc(0), "option_b": "  "}, "field 'option_b' is '  '"),
        ({**arc(0), "option_b": 7}, "field 'option_b' is 7"),
        ({name: value for name, value in arc(0).items() if name != "option_b"}, "field 'option_b' is None"),
        ({**arc(0, num_options=3), "answer": "D"}, "field 'answer' is 'D', the options are A to C"),
        ({**arc(0), "answer": 2}, "field 'answer' is 2, the options are A to D"),
        ({**arc(0), "instruction": " "}, "field 'instruction' is ' '"),
        ({**arc(0), "id": None}, "field 'id' is missing"),
        ({"id": "x", "instruction": "Why?", "answer": "A", "option_a": "so"}, "the record has 1 options"),
    ],
    "m_hellaswag/en_validation": [
        (hellaswag(0, "4"), "field 'label' is '4', the endings are 0 to 3"),
        ({**hellaswag(0), "endings": ["a.", ""]}, "field 'endings', option 2 is ''"),
        ({**hellaswag(0), "endings": "a."}, "field 'endings' is 'a.', it must list two or more options"),
        ({**hellaswag(0), "ctx_a": None}, "field 'ctx_a' is missing"),
    ],
    "m_mmlu/en_test": [({**mmlu("anatomy", 0), "answer": "E"}, "field 'answer' is 'E', the options are A to D")],
    "m_truthfulqa/en_validation": [
        (truthfulqa(0, labels=(1, 1)), "field 'mc2_targets_labels' must have both true and false choices"),
        ({**truthfulqa(0), "mc2_targets_labels": [1, 0]}, "must hold 0 or 1 for each of 4 choices"),
        ({**truthfulqa(0), "question": None}, "field 'question' is missing"),
    ],
}
TASK_OF = {"m_arc": "arc", "m_hellaswag": "hellaswag", "m_mmlu": "mmlu", "m_truthfulqa": "truthfulqa_mc2"}


@pytest.mark.parametrize(("name", "row", "message"), [(name, *case) for name, cases in BAD.items() for case in cases])
def test_error_of_a_bad_record_names_file_line_and_field(tmp_path, name, row, message):
    data = everything(tmp_path)
    folder, rest = name.split("/")
    good = [record for _, record in data.read(folder, "en", rest.split("_")[1]).rows]
    write(tmp_path, name, [good[0], row, good[1]])
    task = TASK_OF[folder]
    with pytest.raises(UserError) as error:
        run(tmp_path, task, shots=0)
    path, line, _ = str(error.value).split(":", 2)
    assert path == str(tmp_path / f"{name}.json")
    lines = (tmp_path / f"{name}.json").read_text().split("\n")
    assert 1 < int(line) < len(lines) - 1 and lines[int(line) - 1] == " {"
    assert message in str(error.value) and "\n" not in str(error.value)
    built = run(tmp_path, task, shots=0, skip_bad=True)
    assert built.counts["bad_records"] == 1 and [document.index for document in built.documents] == [0, 2]
