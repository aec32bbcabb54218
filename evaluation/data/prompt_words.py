"""Prompt words: the words for "Question:" and "Answer:" that protocol strict writes in each language."""

from __future__ import annotations

from dataclasses import dataclass

from engine.base.errors import UserError


@dataclass(frozen=True)
class PromptWords:
    """The two labels with their colons, and the gap between a label and a text ("" in scripts without spaces)."""

    question: str
    answer: str
    gap: str = " "


# Language, or language-script for a second script -> its words.
_WORDS = {
    "en": PromptWords("Question:", "Answer:"),
    "ru": PromptWords("Вопрос:", "Ответ:"),
    "de": PromptWords("Frage:", "Antwort:"),
    "zh": PromptWords("问题：", "答案：", gap=""),  # for traditional Chinese too: main_script cannot tell the two apart
    "fr": PromptWords("Question :", "Réponse :"),
    "es": PromptWords("Pregunta:", "Respuesta:"),
    "it": PromptWords("Domanda:", "Risposta:"),
    "nl": PromptWords("Vraag:", "Antwoord:"),
    "vi": PromptWords("Câu hỏi:", "Trả lời:"),
    "id": PromptWords("Pertanyaan:", "Jawaban:"),
    "ar": PromptWords("السؤال:", "الجواب:"),
    "hu": PromptWords("Kérdés:", "Válasz:"),
    "ro": PromptWords("Întrebare:", "Răspuns:"),
    "da": PromptWords("Spørgsmål:", "Svar:"),
    "sk": PromptWords("Otázka:", "Odpoveď:"),
    "uk": PromptWords("Питання:", "Відповідь:"),
    "ca": PromptWords("Pregunta:", "Resposta:"),
    "sr": PromptWords("Питање:", "Одговор:"),
    "sr-Latn": PromptWords("Pitanje:", "Odgovor:"),
    "hr": PromptWords("Pitanje:", "Odgovor:"),
    "hi": PromptWords("प्रश्न:", "उत्तर:"),
    "bn": PromptWords("প্রশ্ন:", "উত্তর:"),
    "ta": PromptWords("கேள்வி:", "பதில்:"),
    "ne": PromptWords("प्रश्न:", "उत्तर:"),
    "ml": PromptWords("ചോദ്യം:", "ഉത്തരം:"),
    "mr": PromptWords("प्रश्न:", "उत्तर:"),
    "te": PromptWords("ప్రశ్న:", "సమాధానం:"),
    "kn": PromptWords("ಪ್ರಶ್ನೆ:", "ಉತ್ತರ:"),
}
ENGLISH = _WORDS["en"]


def words_of(lang: str, script: str | None = None) -> PromptWords:
    """Return the words of a language, in this script if it has words of its own. UserError for an unknown language."""
    if words := _WORDS.get(f"{lang}-{script}"):
        return words
    if lang not in _WORDS:
        raise UserError(
            f"the strict protocol has no prompt words for {lang!r}: add them with "
            "evaluation.data.prompt_words.register_words, or choose --protocol lm-eval"
        )
    return _WORDS[lang]


def register_words(lang: str, words: PromptWords) -> None:
    """Register the words of a language. UserError if it has other words already."""
    if _WORDS.setdefault(lang, words) != words:
        raise UserError(f"{lang!r} has prompt words already, such as {_WORDS[lang].question!r}: use those")
