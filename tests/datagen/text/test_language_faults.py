"""Tests of the language checks: script, English left over, similar languages. Every kit's own sentences pass."""

from __future__ import annotations

import json

import pytest

from datagen.kits import kit_codes, load_kit
from datagen.text.language_faults import language_fault, script_fault
from engine.base.languages import LANGUAGES, Language

SOURCE = "The weather was so pleasant that my whole family went for a long walk along the river yesterday."


def sentences(code, least=60):
    """Yield a kit's sentences, joined until they are long enough for the language check."""
    texts, group = load_kit(code).texts, ""
    for text in texts:
        group = f"{group} {text}".strip()
        if len(group) >= (20 if code == "zh" else least):
            yield group
            group = ""


@pytest.mark.parametrize("code", [code for code in kit_codes() if code != "en"])
def test_kit_sentences_pass(code):
    groups = list(sentences(code))
    assert len(groups) > 10
    for group in groups:
        assert language_fault(SOURCE, group, LANGUAGES[code]) is None


@pytest.mark.parametrize(
    ("wanted", "got"),
    [("ne", "hi"), ("ne", "mr"), ("hi", "mr"), ("mr", "ne"), ("uk", "ru"), ("ru", "uk"), ("sr", "ru"), ("ca", "es"),
     ("es", "it"), ("ro", "it"), ("nl", "de"), ("da", "de"), ("sk", "hr"), ("hr", "sk"), ("id", "vi"), ("hu", "sk")],
)  # fmt: skip
def test_finds_a_similar_language(wanted, got):
    groups = list(sentences(got, 100))
    faults = [language_fault(SOURCE, group, LANGUAGES[wanted]) for group in groups]
    assert sum(fault is not None for fault in faults) >= 0.9 * len(groups)
    assert all(fault.startswith(("language: looks like", "script")) for fault in faults if fault)


@pytest.mark.parametrize(
    ("wanted", "got"), [("ne", "vi"), ("sr", "hi"), ("zh", "ru"), ("ar", "hi"), ("fr", "ru"), ("ta", "te")]
)
def test_finds_another_script(wanted, got):
    for text in load_kit(got).texts[:10]:
        assert language_fault(SOURCE, text * 2, LANGUAGES[wanted]).startswith("script: 0% of the letters are ")


SERBIAN = str.maketrans(dict(zip("абвгдђежзијклмнопрстћуфхцчш", "abvgdđežzijklmnoprstćufhcčš"), љ="lj", њ="nj", џ="dž"))


def test_serbian_passes_in_either_script_but_not_mixed():
    assert language_fault("Explain how a volcano works.", "Objasni kako funkcioniše vulkan.", LANGUAGES["sr"]) is None
    for group in sentences("sr"):
        latin = group.lower().translate(SERBIAN)
        assert script_fault(latin, LANGUAGES["sr"]) is None
        assert language_fault(SOURCE, latin, LANGUAGES["sr"]) is None
        mixed = " ".join(word.lower().translate(SERBIAN) if n % 2 else word for n, word in enumerate(group.split()))
        assert script_fault(mixed, LANGUAGES["sr"]).endswith("are Cyrl or Latn")


def test_finds_neighbours_of_latin_serbian():
    """Slovak, Slovenian and Polish are faults. Croatian is not tested: a Croatian sentence may be valid Serbian."""
    for other in (
        "Počasie bolo také príjemné, že celá moja rodina šla včera na dlhú prechádzku popri rieke.",
        "Vreme je bilo tako prijetno, da je šla vsa moja družina včeraj na dolg sprehod ob reki.",
        "Pogoda była tak przyjemna, że cała moja rodzina poszła wczoraj na długi spacer wzdłuż rzeki.",
    ):
        assert language_fault(SOURCE, other, LANGUAGES["sr"]).startswith("language: looks like")


def test_names_acronyms_and_code_pass():
    source = "Ada Lovelace compared HTML with `body { }` and JavaScript at https://example.org/long/path/to/it"
    target = "Ada Lovelace ले HTML लाई `body { }` र JavaScript सँग https://example.org/long/path/to/it मा दाँजिन्"
    assert language_fault(source, target, LANGUAGES["ne"]) is None
    assert language_fault("HTML, CSS, JavaScript", "HTML, CSS, JavaScript", LANGUAGES["ne"]) is None
    assert language_fault("Which song is by The Police?", "哪首歌是The Police的？", LANGUAGES["zh"]) is None
    assert language_fault("a*(b + c) = d", "a*(b + c) = d", LANGUAGES["fr"]) is None


def test_finds_text_left_in_english():
    assert language_fault(SOURCE, SOURCE, LANGUAGES["fr"]) == "left in English"
    assert language_fault("The sun", "The sun", LANGUAGES["vi"]) == "left in English"
    assert language_fault("red apples taste sweet", "red  apples taste sweet", LANGUAGES["da"]) == "left in English"
    title = "Nous avons lu « the weather was so pleasant » hier, toute la famille, au bord de la rivière."
    assert language_fault(SOURCE, title, LANGUAGES["fr"]) is None  # five words
    half = "Il faisait beau: the weather was so pleasant that my whole family est partie."
    assert language_fault(SOURCE, half, LANGUAGES["fr"]).startswith("left in English: 'the weather was so")


def test_finds_english_that_is_not_from_the_source():
    answer = "I would be glad to help with that, but first tell me which river you walked along with them."
    assert language_fault(SOURCE, answer, LANGUAGES["id"]) == "language: looks like English"


def test_unknown_script_is_not_checked():
    unknown = Language("xx", "X", "X", ("Zzzz",), "none", None, False)
    assert script_fault("whatever it may be written in", unknown) is None


def test_finds_hindi_in_okapis_nepali(real_data):
    """Machine translations of MMLU into Nepali; some are in Hindi instead ("है" ends a Hindi sentence)."""
    english = {item["id"]: item["instruction"] for item in json.loads((real_data / "m_mmlu/en_dev.json").read_text())}
    items = json.loads((real_data / "m_mmlu" / "ne_dev.json").read_text())
    found = {
        item["id"]: item["instruction"]
        for item in items
        if "Hindi" in (language_fault(english[item["id"]], item["instruction"], LANGUAGES["ne"]) or "")
    }
    assert 5 <= len(found) <= 0.06 * len(items)
    assert sum("है" in text for text in found.values()) >= 0.8 * len(found)
