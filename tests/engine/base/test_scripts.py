"""main_script: the given script with most letters, its share, and None where it cannot tell."""

from __future__ import annotations

import pytest

from engine.base.languages import LANGUAGES
from engine.base.scripts import main_script
from tests.greetings import GREETINGS


@pytest.mark.parametrize("code", LANGUAGES)
def test_greeting_of_each_language_is_in_its_first_script(code):
    scripts = LANGUAGES[code].scripts
    assert main_script(scripts, GREETINGS[code]) == (scripts[0], 1.0)
    other = ("Latn",) if scripts[0] != "Latn" else ("Cyrl", "Arab")
    assert main_script(other, GREETINGS[code]) == (other[0], 0.0)


def test_scripts_are_counted_one_at_a_time():
    assert main_script(("Cyrl", "Latn"), "Како си?") == ("Cyrl", 1.0)
    assert main_script(("Cyrl", "Latn"), "Kako si?") == ("Latn", 1.0)
    assert main_script(("Cyrl", "Latn"), "Како kako") == ("Cyrl", 0.5)


def test_japanese_and_korean_mix_letters():
    assert main_script(("Jpan",), "カタカナとひらがなと漢字、ー、々") == ("Jpan", 1.0)
    assert main_script(("Kore",), "한국어 漢字") == ("Kore", 1.0)
    assert main_script(("Hans", "Hant"), "漢字 abc") == ("Hans", 0.4)


def test_none_for_unknown_script_and_for_text_without_letters():
    assert main_script(("Zzzz",), "abc") is None
    assert main_script(("Latn", "Zzzz"), "abc") is None
    assert main_script(("Latn",), "12 + 3 = ?") is None
