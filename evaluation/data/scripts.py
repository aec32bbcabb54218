"""Scripts: whether a benchmark file is written in a script of the language it is given for, and in which one."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from engine.base.errors import UserError
from engine.base.languages import Language
from engine.base.scripts import main_script

_SAMPLE = 200
# Latin is in every text (formulas, names), so a file in another script is told by that script's share.
_LEAST_SHARE = 0.2


def check_script(language: Language, name: str, texts: Iterable[str]) -> str:
    """The script of the first 200 texts; the language's first one where nothing can be said.

    UserError if hardly a letter is in a script of the language: a file of another language. A file of another language
    in the same script is not found.
    """
    found = main_script(language.scripts, "".join(islice(texts, _SAMPLE)))
    if found is None:
        return language.scripts[0]
    script, share = found
    if share < _LEAST_SHARE:
        scripts = " or ".join(language.scripts)
        raise UserError(
            f"{name}: {share:.0%} of its letters are in the script of {language.name} ({scripts}): "
            f"is it a file of another language? give the {language.code} file, or the right --lang"
        )
    return script
