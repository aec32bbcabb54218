"""Lint finds each fault that a test puts into a folder, and nothing in a clean folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.base.errors import UserError
from evaluation.data.files import LocalData
from evaluation.lint import lint, main, render
from evaluation.tasks.mmlu import GROUPS
from tests.evaluation.made_up import arc, everything, hellaswag, mmlu, truthfulqa, write
from tests.greetings import GREETINGS


@pytest.fixture
def folder(tmp_path):
    everything(tmp_path)
    subjects = [subject for group in GROUPS.values() for subject in group]
    for part, size in (("test", 2), ("val", 2), ("dev", 5)):
        write(tmp_path, f"m_mmlu/en_{part}", [mmlu(subject, n, part=part) for subject in subjects for n in range(size)])
    return tmp_path


def append(folder, name: str, rows: list[dict]) -> None:
    benchmark, rest = name.split("/")
    lang, part = rest.split("_")
    write(folder, name, [row for _, row in LocalData(folder).read(benchmark, lang, part).rows] + rows)


def kinds(folder) -> set[tuple[str, str, bool]]:
    return {(finding.file, finding.kind, finding.is_error) for finding in lint(folder).findings}


def test_clean_folder_has_no_findings(folder, capsys):
    assert kinds(folder) == set()
    assert main([str(folder)]) == 0
    assert "m_arc test" in capsys.readouterr().out


TRUE_AFTER_FALSE = "a true choice after a false one (protocol okapi counts it as false)"


@pytest.mark.parametrize(
    ("name", "rows", "kind", "is_error"),
    [
        ("m_arc/en_test", [{**arc(50), "option_b": "thing a50"}], "equal options", False),
        ("m_arc/en_test", [{**arc(50), "option_b": ""}], "unusable record", True),
        ("m_arc/en_test", [{**arc(50), "answer": "F"}], "unusable record", True),
        ("m_arc/en_test", [{**arc(50), "answer": ""}], "no answer", False),
        ("m_arc/en_test", [{**arc(50), "id": "made/test/0"}], "id given more than once", False),
        ("m_arc/en_train", [{**arc(3), "id": "made/train/3"}], "also in another part", False),
        ("m_hellaswag/en_validation", [hellaswag(50, "7")], "unusable record", True),
        ("m_mmlu/en_test", [mmlu("astrology", 0)], "unknown subject", False),
        ("m_mmlu/en_test", [{**mmlu("anatomy", 9), "id": "9"}], "no subject in the id", False),
        ("m_mmlu/en_test", [mmlu("anatomy", 99, part="dev")], "id of another part", False),
        ("m_truthfulqa/en_validation", [truthfulqa(50, (1, 0, 1, 0))], TRUE_AFTER_FALSE, False),
    ],
)
def test_each_fault_is_found(folder, name, rows, kind, is_error):
    append(folder, name, rows)
    found = kinds(folder)
    assert {(kind, is_error)} == {(found_kind, error) for _, found_kind, error in found}
    assert any(file == f"{name}.json" for file, _, _ in found)
    assert main([str(folder)]) == int(is_error)


def test_missing_subjects_and_subjects_with_few_shots(folder):
    rows = [row for _, row in LocalData(folder).read("m_mmlu", "en", "dev").rows]
    write(folder, "m_mmlu/en_dev", [row for row in rows if row["id"] not in ("anatomy/dev/2", "virology/dev/0")])
    (finding,) = lint(folder).findings
    assert (finding.kind, finding.detail) == ("subjects with fewer than 5 shots", "anatomy, virology")
    write(folder, "m_mmlu/en_test", [mmlu("anatomy", 0)])
    missing = next(finding for finding in lint(folder).findings if finding.kind == "subjects missing")
    assert "virology" in missing.detail and "anatomy" not in missing.detail


def test_unreadable_file_and_wrong_or_unknown_language(folder):
    (folder / "m_arc/fr_test.json").write_text("[{")
    write(folder, "m_arc/te_test", [arc(0)])
    write(folder, "m_arc/tlh_test", [arc(0)])
    assert kinds(folder) == {
        ("m_arc/fr_test", "unreadable", True),
        ("m_arc/te_test.json", "script of another language", True),
        ("m_arc/tlh_test.json", "language not registered", True),
    }


def test_counts_are_relative_to_english(folder):
    write(folder, "m_arc/te_test", [{**arc(n), "instruction": GREETINGS["te"] + str(n)} for n in range(4)])
    report = lint(folder)
    assert report.counts["m_arc", "test", "en"] == 5
    assert report.counts["m_arc", "test", "te"] == 4
    assert "te 4 (80.0%)" in render(report)


def test_empty_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no benchmark file: give the folder that holds m_arc"):
        lint(tmp_path)


def test_real_files_have_no_errors_and_known_overlaps(real_data):
    """No record is unusable. Only English MMLU has questions of another part in its test file."""
    report = lint(real_data)
    assert not [finding for finding in report.findings if finding.is_error]
    overlaps = [finding for finding in report.findings if finding.kind == "also in another part"]
    assert {finding.file for finding in overlaps} == {"m_mmlu/en_test.json"}
    for finding in overlaps:
        rows = []
        for place in finding.detail.split(" equals "):
            path, line = place.rsplit(":", 1)
            text = "\n".join(Path(path).read_text(encoding="utf-8").split("\n")[int(line) - 1 :])
            rows.append(json.JSONDecoder().raw_decode(text)[0])
        assert rows[0]["instruction"].strip() == rows[1]["instruction"].strip()


REFERENCES = [{"id": str(n), "prompt": f"Say it {n} times", "references": ["it"]} for n in range(3)]
TRUTH = {"question": "Is it so?", "correct_answers": ["Yes", "It is"], "incorrect_answers": ["No"]}


@pytest.mark.parametrize(
    ("name", "rows", "kind", "is_error"),
    [
        ("references/en_test", [{**REFERENCES[0], "references": []}], "unusable record", True),
        ("references/en_test", [{**REFERENCES[0], "id": "9"}], "prompt given more than once", False),
        ("references/en_test", [{**REFERENCES[0], "prompt": "Other"}], "id given more than once", False),
        ("references/ne_test", REFERENCES, "script of another language", True),
        ("references/xx_test", REFERENCES, "language not registered", True),
        ("rules/en_test", [{"prompt": "Say", "rules": [{"rule": "max_word", "value": 1}]}], "unusable record", True),
        ("facts/en_test", [{"question": "Who?", "targets": [""]}], "unusable record", True),
        ("truthfulqa_answers/en_validation", [{**TRUTH, "incorrect_answers": ["Yes"]}],
         "an answer is both right and wrong", False),
    ],
)  # fmt: skip
def test_files_of_generation_tasks_are_read_too(tmp_path, name, rows, kind, is_error):
    write(tmp_path, "references/en_test", REFERENCES)
    assert kinds(tmp_path) == set()
    before = REFERENCES if name == "references/en_test" else []
    write(tmp_path, name, [*before, *rows])
    assert {(found, error) for file, found, error in kinds(tmp_path) if file.startswith(name)} == {(kind, is_error)}
