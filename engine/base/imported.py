"""Import a function of the user's, named module:function on the command line."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from engine.base.errors import UserError


def import_function(
    name: str, flag: str, arguments: Sequence[str], instead: str, optional: Sequence[str] = ()
) -> Callable[..., Any]:
    """Return the function that `name` (module:function) names; its module may lie in the working folder.

    module:factory(1, unit='word') names what the factory returns for these literals. UserError if there is no such
    function, or if it does not take these arguments (those in `optional` only if it has parameters of their names);
    `instead` says what `flag` takes.
    """
    module_name, _, called = name.partition(":")
    function_name, bracket, _ = called.partition("(")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # sys.path starts with the launcher's folder; the user's module is here
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        if not callable(function):
            raise TypeError(f"it is {function!r:.60}")
        if bracket:
            values, named = _literals(called)
            function = function(*values, **named)
        with contextlib.suppress(ValueError):  # a compiled function may have no signature
            also = {x: x for x in optional if has_parameter(function, x)}
            inspect.signature(function).bind(*arguments, **also)
    except (ImportError, AttributeError, SyntaxError, TypeError, ValueError) as error:
        raise UserError(
            f"{flag} {name} is not an importable function of ({', '.join(arguments)}) ({error}): give {instead}"
        ) from error
    return function


def has_parameter(function: Callable[..., Any], name: str) -> bool:
    """Return whether a function has a parameter of this name."""
    try:
        return name in inspect.signature(function).parameters
    except ValueError:  # a compiled function
        return False


def _literals(call: str) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments of a call as text, such as "length(5, 50)". ValueError unless they are literals."""
    tree = ast.parse(call, mode="eval").body
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        raise ValueError(f"{call} is no call")
    try:
        values = [ast.literal_eval(value) for value in tree.args]
        return values, {str(pair.arg): ast.literal_eval(pair.value) for pair in tree.keywords}
    except ValueError as error:
        raise ValueError(f"{call} has an argument that is no number, text or list of them") from error
