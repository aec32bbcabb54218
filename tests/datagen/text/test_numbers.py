"""Tests of reading numbers: digits with separators and scales, words, compounds, numerals, and words that are none."""

from __future__ import annotations

from fractions import Fraction

import pytest

from datagen.kits import load_kit
from datagen.text.number_words import lexicon
from datagen.text.numbers import read_numbers, values_of
from engine.base.languages import LANGUAGES

HALF = Fraction(1, 2)


@pytest.mark.parametrize(
    ("written", "lang", "values"),
    [
        ("7", "de", {7}),
        ("1,234", "en", {1234}),
        ("1.234", "en", {Fraction("1.234")}),
        ("1.234", "de", {1234, Fraction("1.234")}),
        ("1,00,000", "hi", {100_000}),
        ("12 000", "fr", {12_000}),
        ("1.234,5", "it", {Fraction("1234.5")}),
        (".25", "en", {Fraction(1, 4)}),
        ("1.2.3", "en", set()),
        ("14.3.2021", "de", set()),
    ],
)
def test_values_of(written, lang, values):
    assert values_of(written, lang) == values


@pytest.mark.parametrize(
    ("lang", "text", "values"),
    [
        ("en", "$1.2 billion", {1_200_000_000}),
        ("es", "1200 millones", {1_200_000_000}),
        ("hi", "15 लाख", {1_500_000}),
        ("hi", "1 अरब 20 करोड़", {1_200_000_000}),
        ("zh", "25万", {250_000}),
        ("it", "250mila", {250_000}),
        ("ar", "٢٥٠ ألف", {250_000}),
        ("fr", "20k", {20, 20_000}),
        ("hr", "3 milijuna 1950. godine", {3_000_000}),
    ],
)
def test_scale_multiplies_the_digits_before_it(lang, text, values):
    assert read_numbers(text, lang).digits[0].values == values


@pytest.mark.parametrize(
    ("lang", "text", "value"),
    [
        ("ru", "двадцать пять", 25), ("ru", "семидесятые", 70), ("ru", "с трёхсот", 300), ("uk", "дев’яноста", 90),
        ("de", "fünfundzwanzig", 25), ("de", "dreihunderttausend", 300_000), ("de", "Fünfsternehotel", 5),
        ("nl", "tweeëntwintig", 22), ("da", "femogtyve", 25), ("da", "halvfemserne", 90),
        ("fr", "soixante-dix", 70), ("fr", "quatre-vingt-dix", 90), ("fr", "XIXe", 19),
        ("fr", "deux cent mille", 200_000),
        ("es", "mil doscientos millones", 1_200_000_000), ("it", "diecimila", 10_000), ("hu", "kétszázezer", 200_000),
        ("sk", "tristotisíc", 300_000), ("sr", "осамдесетих", 80), ("sr", "osamdesetih", 80),
        ("vi", "hai mươi lăm", 25),
        ("id", "dua belas", 12), ("id", "tiga puluh dua", 32), ("ar", "الثاني عشر", 12), ("ar", "خمسة وعشرون", 25),
        ("zh", "三百二十", 320), ("zh", "一九八四", 1984), ("zh", "两千万", 20_000_000), ("ne", "छवटा", 6),
        ("mr", "साडेनऊ", 9), ("ta", "ஒன்பதரை", 9), ("te", "ఆరేళ్ల", 6), ("kn", "ಮುನ್ನೂರು", 300), ("ml", "അറുനൂറ്", 600),
        ("hi", "डेढ़", Fraction(3, 2)), ("bn", "আড়াই লাখ", 250_000), ("hu", "másfél millió", 1_500_000),
        ("uk", "ХІХ", 19),
    ],
)  # fmt: skip
def test_words_and_numerals(lang, text, value):
    assert read_numbers(text, lang).words[value]


@pytest.mark.parametrize(
    ("lang", "text", "value"),
    [
        ("fr", "un million et demi", 1_500_000),
        ("ro", "un milion și jumătate", 1_500_000),
        ("nl", "een kwart miljoen", 250_000),
        ("ru", "два с половиной стакана", Fraction(5, 2)),
        ("fr", "trois quarts d'heure", Fraction(3, 4)),
        ("hi", "साढ़े चार लाख", 450_000),
        ("te", "రెండున్నర", Fraction(5, 2)),
        ("zh", "两杯半", Fraction(5, 2)),
        ("it", "½ tazza", HALF),
    ],
)
def test_halves_and_quarters(lang, text, value):
    assert read_numbers(text, lang).has_words_for(Fraction(value))


@pytest.mark.parametrize(
    ("lang", "text", "value"),
    [
        ("fr", "septembre", 7), ("de", "Achtung", 8), ("ru", "пятница", 5), ("it", "settimana", 7), ("nl", "Voor", 5),
        ("hi", "दशक", 10), ("bn", "শতাব্দী", 100), ("de", "fünfundzwanzig", 20), ("en", "a two-year plan", 3),
    ],
)  # fmt: skip
def test_word_that_starts_like_a_number_is_none(lang, text, value):
    assert not read_numbers(text, lang).words[value]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_reads_every_number_word_of_the_kit(lang):
    for value, word in enumerate(load_kit(lang).numbers):
        assert read_numbers(word, lang).words[Fraction(value)], word


@pytest.mark.parametrize("lang", [code for code in LANGUAGES if code != "zh"])
def test_every_language_has_scales_and_halves(lang):
    words = lexicon(lang)
    atoms = {atom for table in (words.whole, words.stems) for atom in table.values() if atom}
    assert {100, 1000, 1_000_000} <= {atom.value for atom in atoms}
    assert HALF in {atom.part for atom in atoms}
