"""Languages: the paper's table, the nearest code in an error, and languages that a user registers."""

import dataclasses
import subprocess
import sys
import unicodedata

import pytest

from engine.base.errors import UserError
from engine.base.languages import LANGUAGES, Language, get_language, register_language
from engine.base.scripts import main_script

SEVERAL_SCRIPTS = {"sr": ("Cyrl", "Latn"), "zh": ("Hans", "Hant")}


@pytest.fixture
def registry(monkeypatch):
    """The registry; the test may change it."""
    saved = dict(LANGUAGES)
    yield LANGUAGES
    LANGUAGES.clear()
    LANGUAGES.update(saved)


def test_table_counts_by_hand():
    groups = [language.group for language in LANGUAGES.values()]
    assert len(LANGUAGES) == 27
    assert [groups.count(g) for g in ("high", "medium", "low", "none")] == [8, 11, 7, 1]
    llama = {code for code, language in LANGUAGES.items() if language.llama}
    assert llama == {"en", "ru", "de", "fr", "es", "it", "nl", "hu", "ro", "da", "sk", "uk", "ca", "sr", "hr"}
    assert [code for code, language in LANGUAGES.items() if language.rtl] == ["ar"]


def test_groups_follow_the_thresholds_of_the_paper():
    for language in LANGUAGES.values():
        if language.group == "none":
            assert language.commoncrawl_percent is None
            continue
        percent = language.commoncrawl_percent
        assert language.group == ("high" if percent > 1 else "medium" if percent > 0.1 else "low"), language


def test_native_names_are_written_in_the_first_script():
    for language in LANGUAGES.values():
        assert main_script(language.scripts[:1], language.native_name) == (language.scripts[0], 1.0), language
        assert unicodedata.normalize("NFC", language.native_name) == language.native_name


def test_only_serbian_and_chinese_have_several_scripts():
    several = {code: language.scripts for code, language in LANGUAGES.items() if len(language.scripts) > 1}
    assert several == SEVERAL_SCRIPTS


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("nepali", "ne"),
        ("Nepalli", "ne"),
        ("NE", "ne"),
        ("ne_NP", "ne"),
        ("हिन्दी", "hi"),
        ("zh-Hant", "zh"),
        ("dee", "de"),
    ],
)
def test_unknown_code_suggests_the_nearest(wrong, nearest):
    with pytest.raises(UserError, match=f"did you mean '{nearest}'") as caught:
        get_language(wrong)
    message = str(caught.value)
    assert "\n" not in message
    assert all(code in message for code in LANGUAGES)


def test_unknown_code_far_from_all_suggests_none():
    with pytest.raises(UserError) as caught:
        get_language("qqqqqqqqqqq")
    assert "did you mean" not in str(caught.value)


def test_registered_language_is_found(registry):
    swahili = Language("sw", "Swahili", "Kiswahili", ("Latn",), "none", None, False)
    register_language(swahili)
    register_language(swahili)
    assert get_language("sw") is swahili
    with pytest.raises(UserError, match="taken by Swahili"):
        register_language(dataclasses.replace(swahili, name="Other"))


@pytest.mark.parametrize(
    "change",
    [
        {"code": "Swahili language"},
        {"code": ""},
        {"scripts": "Latn"},
        {"scripts": ()},
        {"scripts": ("Latn", "cyrillic")},
        {"scripts": (3,)},
        {"group": "tiny"},
        {"commoncrawl_percent": 101.0},
    ],
)
def test_malformed_languages_are_refused(registry, change):
    good = Language("sw", "Swahili", "Kiswahili", ("Latn",), "none", None, False)
    before = dict(registry)
    with pytest.raises(UserError):
        register_language(dataclasses.replace(good, **change))
    assert registry == before


def test_languages_imports_no_torch():
    code = "import sys, engine.base.languages; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
