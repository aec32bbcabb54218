"""The checks that one translated text must pass: what is kept, no refusal, the right language."""

from __future__ import annotations

from datagen.text.kept_parts import code_without_comments, is_code, lost_part
from datagen.text.language_faults import language_fault
from datagen.text.refusals import refused_part
from engine.base.languages import Language


def fault_of_translation(source: str, target: str, language: Language, keeps_english: bool = False) -> str | None:
    """Why a translation of an English text cannot be used, as "check: what was found"; None if nothing is wrong.

    In this order:
      code, inline code, URLs, placeholders, blanks, numbers   kept, comments in code apart (see `kept_parts`,
                                                               `number_faults`)
      refusal                                                  instead of a translation
      left in English, script, language                        (see `language_faults`)
    A text that is code without a fence is compared as a whole. keeps_english: parts of the text are to stay English, so
    the last three are left out. `python -m tests.datagen.text.checks_sample` measures how often
    they are wrong, both ways.
    """
    if is_code(source):
        same = code_without_comments(source) == code_without_comments(target)
        return None if same else "code: changed beyond its comments"
    if fault := lost_part(source, target, language.code):
        return fault
    if refused_part(source, target, language.code):
        return f"refusal: {target.strip()!r:.80}"
    return None if keeps_english else language_fault(source, target, language)
