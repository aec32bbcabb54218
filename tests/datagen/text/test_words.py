"""Tests of both tokenizers: rouge_score's tokens, and words of any script."""

from __future__ import annotations

import sys
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.tokenizers import DefaultTokenizer

from datagen.text.words import rouge_words, unicode_words

_ROUGE = DefaultTokenizer(use_stemmer=False)


@settings(max_examples=300)
@given(st.text() | st.text(alphabet="aB9 _-.\n\u0130\u212a\u00e9\u0661"))
def test_rouge_words_match_rouge_score(text):
    assert rouge_words(text) == _ROUGE.tokenize(text)


def test_rouge_words_match_rouge_score_on_every_character():
    text = " ".join(chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000)
    assert rouge_words(text) == _ROUGE.tokenize(text)


def test_unicode_words_by_hand():
    assert unicode_words("Don't stop: 3.5 km!") == ["don", "t", "stop", "3", "5", "km"]
    assert unicode_words("Straße STRASSE") == ["strasse", "strasse"]
    assert unicode_words("हिन्दी की किताब") == ["हिन्दी", "की", "किताब"]
    assert unicode_words("വീട് നല്ലത്") == ["വീട്", "നല്ലത്"]
    assert unicode_words("我们去 Paris 吧") == ["我", "们", "去", "paris", "吧"]
    assert unicode_words("كيف حالك؟") == ["كيف", "حالك"]
    assert unicode_words("... !?") == []


@given(st.text())
def test_unicode_words_keep_every_letter_and_digit(text):
    folded = unicodedata.normalize("NFKC", text).casefold()
    letters = [c for c in folded if unicodedata.category(c)[0] in "LN"]
    assert [c for c in "".join(unicode_words(text)) if unicodedata.category(c)[0] in "LN"] == letters


@given(st.text(max_size=30))
def test_unicode_words_ignore_composition(text):
    assert unicode_words(unicodedata.normalize("NFD", text)) == unicode_words(unicodedata.normalize("NFC", text))
