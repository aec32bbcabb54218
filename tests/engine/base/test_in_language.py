"""in_language: the script first, then the likeliest of the languages that share it; short texts by their script."""

import dataclasses
import json
from pathlib import Path

import pytest

from engine.base.in_language import MIN_LETTERS, in_language
from engine.base.languages import LANGUAGES, Language, get_language, register_language

KITS = Path(__file__).parents[3] / "datagen" / "kits"
PARAGRAPHS = {
    "ne": "हाम्रो घर खोलाको छेउमा छ। म हरेक बिहान चिया पिउँछु र दिदी बजारबाट तरकारी ल्याउनुहुन्छ।",
    "hi": "हमारा घर नदी के किनारे है। मैं हर सुबह चाय पीता हूँ और दीदी बाज़ार से सब्ज़ी लाती हैं।",
    "mr": "आमचे घर नदीच्या काठावर आहे. मी रोज सकाळी चहा पितो आणि ताई बाजारातून भाजी आणते.",
    "ru": "Наш дом стоит на берегу реки, и каждое утро я пью чай, пока сестра несёт овощи с рынка.",
    "uk": "Наш будинок стоїть на березі річки, і щоранку я п'ю чай, поки сестра несе овочі з ринку.",
    "sr": "Наша кућа се налази на обали реке и свако јутро пијем чај док сестра доноси поврће са пијаце.",
    "vi": "Nhà của chúng tôi ở bên bờ sông, mỗi buổi sáng tôi uống trà và chị tôi mua rau ở chợ.",
    "id": "Rumah kami berada di tepi sungai, setiap pagi saya minum teh dan kakak membeli sayur di pasar.",
    "da": "Vores hus ligger ved floden, og hver morgen drikker jeg te, mens min søster køber grøntsager.",
    "nl": "Ons huis staat aan de rivier en elke ochtend drink ik thee terwijl mijn zus groente koopt.",
    "en": "Our house stands by the river, and every morning I drink tea while my sister buys vegetables.",
}
CROATIAN = "Naša kuća nalazi se na obali rijeke i svako jutro pijem čaj dok sestra donosi povrće s tržnice."


@pytest.mark.parametrize("written", PARAGRAPHS)
def test_a_paragraph_is_in_its_language_alone(written):
    assert {code for code in PARAGRAPHS if in_language(PARAGRAPHS[written], get_language(code))} == {written}


@pytest.mark.parametrize("code", LANGUAGES)
def test_sentences_of_every_kit_are_in_their_language(code):
    """Three in a row have enough letters. Of the next language of the table, none is unless its letters are."""
    sentences = json.loads((KITS / f"{code}.json").read_text(encoding="utf-8"))["texts"]
    texts = [" ".join(sentences[i : i + 3]) for i in range(0, len(sentences) - 2, 3)]
    right = sum(in_language(text, get_language(code)) for text in texts)
    assert len(texts) >= 13 and right >= len(texts) - 1, (code, right, len(texts))


def test_croatian_and_latin_serbian_count_as_each_other():
    assert in_language(CROATIAN, get_language("hr")) and in_language(CROATIAN, get_language("sr"))
    assert not in_language(CROATIAN, get_language("sk")) and not in_language(PARAGRAPHS["sr"], get_language("hr"))


def test_most_letters_must_be_in_the_script():
    nepali = get_language("ne")
    assert in_language("रातो कलम pen", nepali) and in_language("42 = ?", nepali) and in_language("", nepali)
    assert not in_language("red", nepali) and not in_language("रातो red pen and paper", nepali)


def test_short_texts_are_judged_by_their_script_alone():
    """One letter more, and py3langid is asked: of Hindi it says that it is no Nepali."""
    long = PARAGRAPHS["hi"].replace(" ", "").replace("।", "")
    assert in_language(long[: MIN_LETTERS - 1], get_language("ne"))
    assert not in_language(long[:MIN_LETTERS], get_language("ne"))


def test_the_script_decides_for_a_language_that_is_alone_or_not_known():
    persian = "خانهٔ ما در کنار رودخانه است و هر روز صبح چای می‌نوشم و خواهرم سبزی می‌خرد."
    assert in_language(persian, get_language("ar")), "no other of our languages has Arabic letters"
    odd = Language("qaa", "Odd", "Odd", ("Latn",), "none", None, False)
    assert in_language(PARAGRAPHS["en"], odd) and not in_language(PARAGRAPHS["ru"], odd)
    assert in_language(PARAGRAPHS["en"], dataclasses.replace(odd, scripts=("Zzzz",)))


def test_a_registered_language_is_told_from_ours_and_ours_from_it():
    texts = {
        "sw": "Nyumba yetu iko kando ya mto, na kila asubuhi ninakunywa chai huku dada akinunua mboga.",
        "pt-BR": "A nossa casa fica na margem do rio, e todas as manhãs eu bebo chá e não como pão.",
    }
    for code in texts:
        register_language(Language(code, code, code, ("Latn",), "none", None, False))
    try:
        for code, text in texts.items():
            found = {c for c in (*texts, "en", "id", "es") if in_language(text, get_language(c))}
            assert found == {code}
    finally:
        for code in texts:
            del LANGUAGES[code]
