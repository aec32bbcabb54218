"""Take typed and bounded fields from a request's body."""

from __future__ import annotations

from typing import Any, TypeVar

from engine.serving.errors import bad_request

Default = TypeVar("Default", int, float, None)


class Fields:
    """A JSON object whose fields are taken one by one. null counts as absent."""

    def __init__(self, values: dict[str, Any]):
        self._left = {name: value for name, value in values.items() if value is not None}

    def take(self, name: str) -> Any:
        """Take any value; None if absent."""
        return self._left.pop(name, None)

    def drop(self, *names: str) -> None:
        for name in names:
            self._left.pop(name, None)

    def drop_if(self, name: str, nothing: Any) -> None:
        """Drop a field that has this neutral value."""
        if self._left.get(name) is nothing:
            del self._left[name]

    def flag(self, name: str) -> bool:
        """Take true or false; false if absent."""
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise bad_request(f"{name} must be true or false", name)
        return bool(value)

    def text(self, name: str, default: str) -> str:
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise bad_request(f"{name} must be a text", name)
        return default if value is None else value

    def integer(self, name: str, default: Default, low: int, high: int = (1 << 63) - 1) -> int | Default:
        """Take a whole number from low to high."""
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise bad_request(f"{name} must be a whole number from {low} to {high}", name)
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """Take a number from low to high."""
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise bad_request(f"{name} must be a number from {low:g} to {high:g}", name)
        return float(value)

    def must_be_empty(self) -> None:
        """ApiError if a field is left over."""
        for name in self._left:
            raise bad_request(f"there is no parameter {name[:100]!r}", name[:100], "unknown_parameter")
