"""Templates: the exact text of Alpaca's two forms, the plain form, and template files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.base.errors import UserError
from engine.text.templates import TEMPLATES, Template, load_template


def format_prompt(instruction, input="", template="alpaca"):
    return load_template(template).format(instruction, input)


def test_alpaca_text_is_exact():
    assert format_prompt("Add.", "1 2") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n"
        "\n"
        "### Instruction:\n"
        "Add.\n"
        "\n"
        "### Input:\n"
        "1 2\n"
        "\n"
        "### Response:\n"
    )
    assert format_prompt("Greet.") == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n"
        "\n"
        "### Instruction:\n"
        "Greet.\n"
        "\n"
        "### Response:\n"
    )


def test_plain_with_and_without_input():
    assert format_prompt("जोड।", "1 2", template="plain") == "जोड।\n1 2\n=> "
    assert format_prompt("Greet.", " \n", template="plain") == "Greet.\n=> "


@given(instruction=st.text(), input=st.text())
def test_text_of_a_record_is_never_a_placeholder(instruction, input):
    template = Template("<{instruction}|{input}>", "<{instruction}>")
    expected = f"<{instruction}|{input}>" if input.strip() else f"<{instruction}>"
    assert template.format(instruction, input) == expected


def test_braces_in_a_record_are_kept():
    assert format_prompt("{input} {x}", "{instruction}", template="plain") == "{input} {x}\n{instruction}\n=> "


def test_template_files(tmp_path):
    path = tmp_path / "two.txt"
    path.write_text("Q: {instruction} {x y}\nI: {input}\nA: \n---\nQ: {instruction}\nA:\n\n", encoding="utf-8")
    template = load_template(path)
    assert template.format("q", "i") == "Q: q {x y}\nI: i\nA: "
    assert template.format("q") == "Q: q\nA:\n"
    assert format_prompt("q", template=str(path)) == "Q: q\nA:\n"
    path.write_text("{instruction} {input} =", encoding="utf-8")
    assert load_template(path).format("q") == "q  ="
    path.write_bytes("\ufeff{instruction}\r\n{input}\r\n---\r\n{instruction}\r\n".encode())
    assert load_template(path) == Template("{instruction}\n{input}", "{instruction}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "{instruction} stands 0 times in the form with an input"),
        ("{instruction}", "{input} stands 0 times in the form with an input"),
        ("{instruction} {input} {input}", "{input} stands 2 times"),
        ("{instruction} {input} {output}", "{output} in the form with an input is not filled"),
        ("{instruction} {input}\n---\n{instruction} {input}", "{input} in the form without an input is not filled"),
        ("{instruction} {input}\n---\n", "{instruction} stands 0 times in the form without an input"),
        ("{instruction} {input}\n---\n{instruction}\n---\n", "has 2 lines '---'"),
    ],
)
def test_bad_template_file_is_refused(tmp_path, text, words):
    path = tmp_path / "t.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_template(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_unknown_template_suggests_the_nearest(tmp_path):
    with pytest.raises(UserError, match="did you mean 'alpaca'"):
        load_template("alpacca")
    with pytest.raises(UserError, match="no readable file"):
        load_template(tmp_path)
    (tmp_path / "t.txt").write_bytes(b"\xff{instruction}{input}")
    with pytest.raises(UserError, match="not UTF-8"):
        load_template(tmp_path / "t.txt")


def test_every_template_has_both_forms():
    for template in TEMPLATES.values():
        assert {"{instruction}", "{input}"} <= set(template.with_input.replace("\n", " ").split())
        assert "{input}" not in template.without_input
