"""Tests of number faults: changed, lost and added numbers are faults; numbers in another form are not."""

from __future__ import annotations

import pytest

from datagen.text.number_faults import number_fault

RIGHT = [
    ("ru", "in the 1990s", "в 90-х"),
    ("zh", "in the 1980s", "在20世纪80年代"),
    ("it", "in the 19th century", "nell'Ottocento"),
    ("da", "in the 19th century", "i 1800-tallet"),
    ("ru", "It has 5 rooms.", "В нём пять комнат."),
    ("fr", "1/2 cup", "une demi-tasse"),
    ("hi", "about 20 million people", "लगभग 2 करोड़ लोग"),
    ("de", "at 9:30", "um halb zehn"),
    ("vi", "at 9:30", "lúc 9 giờ rưỡi"),
    ("es", "at 6:00 pm", "a las 18:00"),
    ("ca", "at 9:30", "a dos quarts de deu"),
    ("fr", "On 07/04/2021", "Le 4 juillet 2021"),
    ("ar", "2 hours", "ساعتان"),
    ("zh", "Save 20% today", "今天八折"),
    ("fr", "CO2 and 10^2", "CO₂ et 10²"),
    ("vi", "closed on Mondays", "đóng cửa thứ 2"),
    ("vi", "Drink a cup.", "Uống 1 cốc."),
    ("hu", "in the sixties", "az 1960-as években"),
    ("zh", "in the seventeenth century", "在17世纪"),
    ("ru", "open 24/7", "открыто круглосуточно"),
    ("mr", "7,500,000 people", "पंचाहत्तर लाख लोक"),  # a word that we do not know, like most below 100
]
WRONG = [
    ("ru", "It has 5 rooms.", "В нём шесть комнат.", "lost 5"),
    ("ru", "in the 1990s", "в 80-х", "lost 1990"),
    ("de", "in the 1980s", "in den Siebzigern", "lost 1980"),
    ("hi", "about 20 million people", "लगभग 3 करोड़ लोग", "lost 20"),
    ("zh", "4,500,000 dollars", "45万美元", "lost 4,500,000"),
    ("es", "20 million", "treinta millones", "lost 20"),
    ("fr", "10,000 steps", "10 pas", "lost 10,000"),
    ("de", "at 9:30", "um halb acht", "lost 9"),
    ("es", "at 6:00 pm", "a las 7 de la tarde", "lost 6"),
    ("fr", "8 glasses, 7-8 hours", "huit verres, 7-9 heures", "lost 8"),
    ("mr", "7,500,000 people", "45 लाख लोक", "lost 7,500,000, added 45"),
    ("fr", "Two cats sleep.", "5 chats dorment.", "added 5"),
]


@pytest.mark.parametrize(("lang", "source", "target"), RIGHT)
def test_number_in_another_form_is_no_fault(lang, source, target):
    assert number_fault(source, target, lang) is None


@pytest.mark.parametrize(("lang", "source", "target", "message"), WRONG)
def test_changed_number_is_a_fault(lang, source, target, message):
    assert number_fault(source, target, lang) == message


@pytest.mark.parametrize(
    "text", ["7" * 5000, "一" * 5000, "亿" * 5000, "zwei" * 2000, "X" * 5000, "1 " * 300, "9" * 5000 + "%"]
)
def test_absurdly_long_numbers_are_read(text):
    assert number_fault(f"It is {text}.", f"Es ist {text}.", "de") is None


def test_language_without_known_number_words():
    """Losing a small or often rewritten number is a fault only if the translation has another number instead."""
    assert number_fault("It has 5 rooms.", "Kina vyumba vitano.", "sw") is None
    assert number_fault("the 4th of them", "wa nne", "sw") is None
    assert number_fault("It has 5 rooms.", "Kina vyumba 6.", "sw") == "lost 5, added 6"
    assert number_fault("It has 250 rooms.", "Kina vyumba vingi.", "sw") == "lost 250"
