"""The words around a question in each language: what strict writes in place of "Question:" and "Answer:"."""

from __future__ import annotations

from dataclasses import dataclass

from engine.base.errors import UserError


@dataclass(frozen=True)
class PromptWords:
    """The labels with their colons, and what stands between a label and a text ("" where the script has no blank)."""

    question: str
    answer: str
    gap: str = " "


# Language, or language and script where it has several -> its words.
_WORDS = {
    "en": PromptWords("Question:", "Answer:"),
    "ru": PromptWords("Вопрос:", "Ответ:"),
    "de": PromptWords("Frage:", "Antwort:"),
    "zh": PromptWords("问题：", "答案：", gap=""),  # traditional files get them too: the scripts are one to us
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
    """The words of this language, in this script where it has several. UserError where no one has given them."""
    if words := _WORDS.get(f"{lang}-{script}"):
        return words
    if lang not in _WORDS:
        raise UserError(
            f"the strict protocol has no prompt words for {lang!r}: give them with "
            "evaluation.data.prompt_words.register_words, or choose --protocol lm-eval"
        )
    return _WORDS[lang]


def register_words(lang: str, words: PromptWords) -> None:
    """The words of a language outside the table. UserError if it has others already."""
    if _WORDS.setdefault(lang, words) != words:
        raise UserError(f"{lang!r} has prompt words already, {_WORDS[lang].question!r}: use them")
