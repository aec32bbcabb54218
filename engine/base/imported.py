"""Import a function of the user's, named module:function on the command line."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from engine.base.errors import UserError


def import_function(name: str, flag: str, arguments: Sequence[str], instead: str) -> Callable[..., Any]:
    """Return the function that `name` (module:function) names; its module may lie in the working folder.

    UserError if there is none, or if it does not take these arguments; `instead` says what `flag` takes.
    """
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # sys.path starts with the launcher's folder; the user's module is here
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        if not callable(function):
            raise TypeError(f"it is {function!r:.60}")
        with contextlib.suppress(ValueError):  # a compiled function may have no signature
            inspect.signature(function).bind(*arguments)
    except (ImportError, AttributeError, SyntaxError, TypeError, ValueError) as error:
        raise UserError(
            f"{flag} {name} is not an importable function of ({', '.join(arguments)}) ({error}): give {instead}"
        ) from error
    return function
