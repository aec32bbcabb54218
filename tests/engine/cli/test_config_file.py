"""--config files: YAML values stay plain words, tags and aliases do nothing, and errors are one line."""

from __future__ import annotations

import pytest

from engine.base.errors import UserError
from engine.cli.config_file import CONFIG_BYTES, read_config


@pytest.fixture
def config(tmp_path):
    def write(text, name="x.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_values_stay_as_written(config):
    text = "lr: 1e-4\na: 010\nb: yes\nc: ~\nd: 'null'\ne: [x, 2]\nf: 2026-11-23\n? g\n: |\n  two\n  lines\n"
    text += 'h: "\\u0939"\n'
    assert read_config(config(text)) == {
        "lr": "1e-4", "a": "010", "b": True, "c": None, "d": "null", "e": ["x", "2"], "f": "2026-11-23",
        "g": "two\nlines\n", "h": "ह",
    }  # fmt: skip
    assert read_config(config('\ufeff{"lr": 1e-4, "e": ["x", 2]}', "x.json")) == {"lr": 1e-4, "e": ["x", 2]}
    assert read_config(config("{}")) == {}


def test_tags_build_nothing(config):
    text = "a: !!python/object/apply:os.system ['true']\nb: !!int ''\nc: !!timestamp x\nd: !!binary /w==\ne: !x y"
    assert read_config(config(text)) == {"a": ["true"], "b": "", "c": "x", "d": "/w==", "e": "y"}


def test_aliases_are_not_expanded(config):
    """A billion-laughs file: nine levels of nine references each would expand to 10^9 words."""
    names = "abcdefghi"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{n}: &{n} [{', '.join([f'*{before}'] * 9)}]" for before, n in zip(names, names[1:])]
    with pytest.raises(UserError, match="setting 'b' must be a plain value or a list of them, not a list"):
        read_config(config("\n".join(lines)))
    with pytest.raises(UserError, match="setting 'a' must be a plain value or a list of them, not a mapping"):
        read_config(config("a: &a {b: *a}"))


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("lr: 1\nlr: 2", "x.yaml", "setting 'lr' is given twice"),
        ('{"lr": 1, "lr": 2}', "x.json", "field 'lr' is given twice"),
        ("[a, b]: 1", "x.yaml", "a setting's name must be a word"),
        ("a: [x, ~]", "x.yaml", "setting 'a' contains a null"),
        ('a: "\\0"', "x.yaml", "setting 'a' contains a NUL or half a character"),
        ('{"a": ["x", "\\u0000"]}', "x.json", "setting 'a' contains a NUL or half a character"),
        ('{"a": "\\ud83d"}', "x.json", "half a surrogate pair"),
        ('a: "\\ud83d"', "x.yaml", "setting 'a' contains a NUL or half a character"),
        ("a: " + "[" * 5000, "x.yaml", "is not valid YAML (nested too deeply)"),
        ('{"a":\n' + "[" * 5000, "x.json", "is not valid JSON (line 2: nested deeper than 100)"),
        ('{"a": {"b": 1}}', "x.json", "setting 'a' must be a plain value or a list of them, not a mapping"),
        ("a: *nobody", "x.yaml", "is not valid YAML"),
        ("--- 1\n--- 2", "x.yaml", "is not valid YAML"),
        ("#" * (CONFIG_BYTES + 1), "x.yaml", "is larger than 1 MiB"),
    ],
)
def test_errors_are_one_line(config, text, name, words):
    path = config(text, name)
    with pytest.raises(UserError) as caught:
        read_config(path)
    assert words in str(caught.value)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nul_in_path():
    with pytest.raises(UserError, match="cannot be read"):
        read_config("a\0b.yaml")
