"""okapi, leaderboard-v1 and lm-eval against expected shots, prompts and token ids written by hand."""

from __future__ import annotations

from random import Random

import pytest

from engine.base.errors import UserError
from evaluation.protocols import PROTOCOLS, get_protocol
from evaluation.scoring.build import build
from evaluation.scoring.documents import TaskDocuments
from evaluation.tasks import get_tasks
from tests.evaluation.made_up import (
    arc,
    byte_ids,
    byte_tokenizer,
    everything,
    hellaswag,
    llama_ids,
    llama_tokenizer,
    mmlu,
    truthfulqa,
    write,
)

PRIMER_START = (
    "Q: What is human life expectancy in the United States?\nA: Human life expectancy in the United States is 78"
)
PRIMER_END = "Q: Where were the 1992 Olympics held?\nA: The 1992 Olympics were held in Barcelona, Spain.\n\nQ: "


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return everything(tmp_path_factory.mktemp("data"))


def run(data, task: str, protocol: str, tokenizer=None, max_length: int = 100_000, **options) -> TaskDocuments:
    tokenizer = tokenizer or byte_tokenizer()
    return build(get_tasks([task])[0], "en", data, tokenizer, PROTOCOLS[protocol], max_length, **options)


def shots_of(built: TaskDocuments) -> list[list[int]]:
    return [[int(name.split("/")[-1]) for name in document.shot_ids] for document in built.documents]


# Random(42) shuffles five questions into ORDER. The same generator then samples three of thirty shots for each.
ORDER = [3, 1, 2, 4, 0]
THREE_OF_THIRTY = [[7, 4, 23], [3, 21, 23], [28, 17, 2], [18, 13, 1], [0, 2, 6]]


@pytest.mark.parametrize("protocol", ["okapi", "leaderboard-v1"])
def test_one_generator_shuffles_questions_and_draws_shots(data, protocol):
    built = run(data, "arc", protocol, shots=3)
    assert [document.index for document in built.documents] == ORDER
    assert shots_of(built) == [[100 + i for i in draw] for draw in THREE_OF_THIRTY]
    limited = run(data, "arc", protocol, shots=3, limit=2)
    assert limited.documents == built.documents[:2]


def test_lm_eval_draws_in_file_order_from_seed_1234(data):
    built = run(data, "arc", "lm-eval", shots=3, limit=3)
    assert [document.index for document in built.documents] == [0, 1, 2]
    assert shots_of(built) == [[124, 114, 103], [100, 102, 129], [125, 118, 101]]


def test_default_numbers_of_shots(data):
    expected = {
        "okapi": {"arc": 25, "hellaswag": 0, "mmlu": 25, "truthfulqa_mc1": 0, "truthfulqa_mc2": 0},
        "leaderboard-v1": {"arc": 25, "hellaswag": 10, "mmlu": 5, "truthfulqa_mc1": 0, "truthfulqa_mc2": 0},
        "lm-eval": {"arc": 0, "hellaswag": 0, "mmlu": 0, "truthfulqa_mc1": 0, "truthfulqa_mc2": 0},
        "strict": {"arc": 25, "hellaswag": 0, "mmlu": 5, "truthfulqa_mc1": 0, "truthfulqa_mc2": 0},
    }
    for protocol, tasks in expected.items():
        for task, shots in tasks.items():
            built = run(data, task, protocol)
            assert built.shots == shots
            assert {len(document.shot_ids) for document in built.documents} == {shots}


def test_okapi_mmlu_draws_26_of_validation_and_keeps_25(data):
    built = run(data, "mmlu", "okapi")
    rng, order = Random(42), list(range(6))
    rng.shuffle(order)
    assert [document.index for document in built.documents] == order
    drawn = [rng.sample(range(40), 26)[:25] for _ in order]
    names = [f"{subject}/val/{n}" for subject in ("anatomy", "virology") for n in range(20)]
    assert [list(document.shot_ids) for document in built.documents] == [[names[i] for i in draw] for draw in drawn]


def test_question_is_never_its_own_shot(data):
    """Without a training part, HellaSwag draws eleven of the thirty questions, and keeps the first ten others."""
    for protocol, seed, shuffles in (("leaderboard-v1", 42, True), ("lm-eval", 1234, False)):
        built = run(data, "hellaswag", protocol, shots=10)
        rng, order = Random(seed), list(range(30))
        if shuffles:
            rng.shuffle(order)
        left_out = 0
        for document, own in zip(built.documents, order):
            drawn = rng.sample(range(30), 11)
            left_out += own in drawn
            assert [int(name) for name in document.shot_ids] == [i for i in drawn if i != own][:10]
        assert left_out > 3


def test_draw_with_equal_questions_is_repeated_by_lm_eval_only(tmp_path):
    """Three records are equal. A draw of three may hold two of them, which leaves one shot instead of two."""
    rows = [hellaswag(0), hellaswag(0), hellaswag(0), hellaswag(1), hellaswag(2)]
    data = everything(tmp_path)
    write(tmp_path, "m_hellaswag/en_validation", rows)
    old = run(data, "hellaswag", "leaderboard-v1", shots=2)
    rng, order = Random(42), [0, 1, 2, 3, 4]
    rng.shuffle(order)
    content = [0, 0, 0, 1, 2]
    for document, own in zip(old.documents, order):
        kept = [i for i in rng.sample(range(5), 3) if content[i] != content[own]][:2]
        assert [int(name) for name in document.shot_ids] == [rows[i]["ind"] for i in kept]
    assert old.counts["documents_with_fewer_shots"] > 0
    new = run(data, "hellaswag", "lm-eval", shots=2)
    assert {document.shot_ids for document in new.documents[:3]} <= {("1", "2"), ("2", "1")}
    assert "documents_with_fewer_shots" not in new.counts


def test_leaderboard_mmlu_runs_each_subject_with_the_first_shots_of_dev(data):
    built = run(data, "mmlu", "leaderboard-v1", limit=2)
    assert PROTOCOLS["leaderboard-v1"].average == "subjects"
    assert [document.subject for document in built.documents] == ["anatomy"] * 2 + ["virology"] * 2
    rng, order = Random(42), [0, 1, 2]
    rng.shuffle(order)
    assert [document.index for document in built.documents] == [*order[:2], *(3 + i for i in order[:2])]
    for document in built.documents:
        assert document.shot_ids == tuple(f"{document.subject}/dev/{n}" for n in range(5))


def test_arc_prompts_byte_for_byte(data):
    # Row 3 comes first. The shots are 100 to 129, and the draw takes number 7: 107 has the answer "ABC"[107 % 3].
    rng = Random(42)
    rng.shuffle(list(range(5)))
    assert rng.sample(range(30), 1) == [7]
    for protocol in ("okapi", "leaderboard-v1"):
        document = run(data, "arc", protocol, shots=1).documents[0]
        assert document.prompt == "Question: Which is 107?\nAnswer: thing c107\n\nQuestion: Which is 3?\nAnswer:"
        assert [choice.text for choice in document.choices] == [" thing a3", " thing b3", " thing c3", " thing d3"]
        assert (document.id, document.index, document.gold) == ("made/test/3", 3, 3)
        assert [(choice.characters, choice.bytes) for choice in document.choices] == [(8, 8)] * 4


def test_hellaswag_prompts_byte_for_byte(data):
    document = run(data, "hellaswag", "okapi", limit=30).documents[0]
    number = document.index
    assert document.prompt == f"Cooking: Pot {number} boils. The cook"
    assert [choice.text for choice in document.choices] == [f" ending {letter}{number}." for letter in "abcd"]
    assert document.gold == number % 4


def test_mmlu_prompts_byte_for_byte(data):
    okapi = run(data, "mmlu", "okapi", shots=1).documents[0]
    shot, question = okapi.prompt.split("\n\n")
    number, subject = okapi.index % 3, okapi.subject
    assert question == (
        f"Question: Which {subject} of test is {number}?\nChoices:\nA. thing a{number}\nB. thing b{number}\n"
        f"C. thing c{number}\nD. thing d{number}\nAnswer:"
    )
    # okapi shows and scores the text of the answer, not its letter.
    drawn = int(okapi.shot_ids[0].split("/")[-1])
    assert shot.endswith(f"\nD. thing d{drawn}\nAnswer: thing {'abcd'[drawn % 4]}{drawn}")
    assert [choice.text for choice in okapi.choices] == [f" thing {letter}{number}" for letter in "abcd"]

    letters = run(data, "mmlu", "leaderboard-v1", shots=1).documents[0]
    number, subject = letters.index % 3, letters.subject
    assert letters.prompt == (
        f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        f"Which {subject} of dev is 0?\nA. thing a0\nB. thing b0\nC. thing c0\nD. thing d0\nAnswer: A\n\n"
        f"Which {subject} of test is {number}?\n"
        f"A. thing a{number}\nB. thing b{number}\nC. thing c{number}\nD. thing d{number}\nAnswer:"
    )
    assert [choice.text for choice in letters.choices] == [" A", " B", " C", " D"]


def test_subject_in_the_header_has_spaces(tmp_path):
    data = everything(tmp_path)
    write(tmp_path, "m_mmlu/en_test", [mmlu("high_school_us_history", 0)])
    document = run(data, "mmlu", "leaderboard-v1", shots=0).documents[0]
    start = "The following are multiple choice questions (with answers) about high school us history."
    assert document.prompt.split("\n")[:2] == [start, ""]


@pytest.mark.parametrize("protocol", ["okapi", "leaderboard-v1", "lm-eval"])
def test_truthfulqa_prompt_begins_with_six_solved_questions(data, protocol):
    document = run(data, "truthfulqa_mc1", protocol).documents[0]
    assert document.prompt.startswith(PRIMER_START)
    assert document.prompt.endswith(f"{PRIMER_END}Is {document.index} a colour?\nA:")
    assert document.prompt.count("\n\nQ: ") == 6
    assert document.gold == 0


def test_mc2_truth_ends_at_the_first_false_choice_in_old_protocols(tmp_path):
    data = everything(tmp_path)
    write(tmp_path, "m_truthfulqa/en_validation", [truthfulqa(0, labels=(1, 0, 1, 0))])
    for protocol, truth in (
        ("okapi", (1.0, 0.0, 0.0, 0.0)),
        ("leaderboard-v1", (1.0, 0.0, 0.0, 0.0)),
        ("lm-eval", (1.0, 0.0, 1.0, 0.0)),
        ("strict", (1.0, 0.0, 1.0, 0.0)),
    ):
        assert run(data, "truthfulqa_mc2", protocol).documents[0].gold == truth


def test_only_lm_eval_cleans_arc(tmp_path):
    """Cleaning strips, turns " [title]" into ". ", deletes brackets, then turns two spaces into one."""
    data = everything(tmp_path, "de")
    question, options = " Was ist [e]  hier [title] los? ", (" [H2O]  Wasser", "[x]")
    row = {**arc(0, num_options=2), "instruction": question, "option_a": options[0], "option_b": options[1]}
    write(tmp_path, "m_arc/de_test", [row])
    task, tokenizer = get_tasks(["arc"])[0], byte_tokenizer()
    for protocol, expected, choices in (
        ("lm-eval", "Was ist  hier. los?", ("  Wasser", " ")),
        ("okapi", question, (f" {options[0]}", f" {options[1]}")),
        ("leaderboard-v1", question, (f" {options[0]}", f" {options[1]}")),
        ("strict", question.strip(), (" [H2O]  Wasser", " [x]")),
    ):
        built = build(task, "de", data, tokenizer, PROTOCOLS[protocol], 10_000, shots=0)
        assert expected in built.documents[0].prompt
        assert tuple(choice.text for choice in built.documents[0].choices) == choices
        assert built.counts.get("emptied_options", 0) == (protocol == "lm-eval")


def test_token_ids_of_a_byte_tokenizer(data):
    """No protocol adds BOS to this tokenizer's ids. The space before the answer belongs to the continuation."""
    for protocol in PROTOCOLS:
        document = run(data, "arc", protocol, shots=0, limit=1).documents[0]
        for choice in document.choices:
            assert list(choice.context_ids) == byte_ids(document.prompt)
            assert list(choice.continuation_ids) == byte_ids(choice.text)


@pytest.mark.parametrize("adds_bos", [True, False])
def test_token_ids_of_a_llama_tokenizer(data, adds_bos):
    """The context has one dummy prefix. Under okapi, which tokenizes separately, each choice has another one."""
    tokenizer = llama_tokenizer(adds_bos)
    for protocol in PROTOCOLS:
        document = run(data, "arc", protocol, tokenizer, shots=1, limit=1).documents[0]
        bos = [1] if adds_bos and protocol in ("lm-eval", "strict") else []
        dummy_prefix = [259] if protocol == "okapi" else []
        for choice in document.choices:
            assert list(choice.context_ids) == [*bos, *llama_ids(" " + document.prompt)]
            assert list(choice.continuation_ids) == [*dummy_prefix, *llama_ids(choice.text)]


def test_long_prompts_are_cut_from_the_left_and_counted(data):
    whole = run(data, "arc", "okapi", shots=5, limit=3)
    length = 60
    built = run(data, "arc", "okapi", shots=5, limit=3, max_length=length)
    for document, full in zip(built.documents, whole.documents):
        for choice, uncut in zip(document.choices, full.choices):
            # The last token is not fed to the model, so context and continuation may have one token more.
            assert len(choice.context_ids) + len(choice.continuation_ids) == length + 1
            assert choice.context_ids == uncut.context_ids[-len(choice.context_ids) :]
            assert choice.continuation_ids == uncut.continuation_ids
            assert choice.truncated and not uncut.truncated
    assert built.counts["cut_documents"] == 3
    assert built.counts["cut_tokens"] == sum(
        len(document.choices[0].context_ids) + len(document.choices[0].continuation_ids) - length - 1
        for document in whole.documents
    )


def test_get_protocol_by_name():
    assert get_protocol("okapi") is PROTOCOLS["okapi"]
    with pytest.raises(UserError, match="unknown --protocol 'lm_eval': did you mean 'lm-eval'"):
        get_protocol("lm_eval")


@pytest.mark.parametrize(
    ("task", "protocol", "options", "message"),
    [
        ("arc", "okapi", {"shots": 31}, "task arc needs 31 shots from train, which has 30: lower --shots"),
        ("hellaswag", "lm-eval", {"shots": 30}, "task hellaswag needs 31 shots from validation, which has 30"),
        ("mmlu", "strict", {"shots": 6}, "task mmlu needs 6 shots for each subject from dev, which has 5"),
        ("truthfulqa_mc1", "okapi", {"shots": 3}, "okapi runs truthfulqa_mc1 with 0 shots"),
        ("arc", "lm-eval", {"shots": -1}, "--shots -1 is below 0"),
        ("arc", "lm-eval", {"limit": 0}, "--limit 0 is below 1"),
        ("arc", "okapi", {"shared_shots": True}, "--shared-shots is no part of protocol okapi"),
        ("arc", "okapi", {"shots": 0, "max_length": 5}, "the choice 'thing a3' has 9 tokens under okapi, 1 to 5"),
    ],
)
def test_impossible_settings_are_an_error_of_one_line(data, task, protocol, options, message):
    with pytest.raises(UserError) as error:
        run(data, task, protocol, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
