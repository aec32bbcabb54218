"""Check one translated text: nothing lost, no refusal, the right language."""

from __future__ import annotations

from datagen.text.kept_parts import code_without_comments, is_code, lost_part
from datagen.text.language_faults import language_fault
from datagen.text.refusals import adds_refusal
from engine.base.languages import Language


def fault_of_translation(source: str, target: str, language: Language, keeps_english: bool = False) -> str | None:
    """Return the first fault of a translation of an English text as "check: what was found", or None.

    Runs these checks in order:
      code, inline code, URLs, placeholders, blanks, numbers   must stay as they are (`kept_parts`, `number_faults`);
                                                               comments in code may change
      refusal                                                  must not replace the translation (`refusals`)
      left in English, script, language                        must be the target language (`language_faults`)
    Compares a text that is code without a fence as a whole. keeps_english: parts of the text stay English, so skip the
    last three checks. `python -m tests.datagen.text.checks_sample` measures how often the checks reject a good
    translation and how often they miss a bad one.
    """
    if is_code(source):
        same = code_without_comments(source) == code_without_comments(target)
        return None if same else "code: changed beyond its comments"
    if fault := lost_part(source, target, language.code):
        return fault
    if adds_refusal(source, target, language.code):
        return f"refusal: {target.strip()!r:.80}"
    return None if keeps_english else language_fault(source, target, language)
