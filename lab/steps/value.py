"""One value of a YAML file and its place there: errors name file, line, column, what was found and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, NoReturn, Self, TypeVar, cast

from lab.words import decode_word
from nodeproc.yamlfile import Document, Place

_T = TypeVar("_T")


class Value:
    """Every method raises ConfigError, with the place in the file, for anything that is not allowed."""

    def __init__(self, document: Document, place: Place = ()) -> None:
        self._document, self._place = document, place

    def at(self, *parts: str | int) -> Self:
        """Return the value further inside, which may not exist."""
        inside = copy(self)
        inside._place = (*self._place, *parts)
        return inside

    @property
    def value(self) -> Any:
        """The plain value."""
        return self._document.value(self._place)

    def of(self, field: str) -> Self:
        """Return the value of a field: in this mapping, or this plain value, which stands for the field."""
        return self.at(field) if isinstance(self.value, dict) else self

    def fail(self, message: str, *, at_key: bool = False) -> NoReturn:
        """Fail with this message. at_key: point at the key instead of its value."""
        raise self._document.error(self._place, message, at_key=at_key)

    def wrong(self, allowed: str, names: Sequence[str] = ()) -> NoReturn:
        """Fail with the value that was found and what is allowed; names: words that may have been meant."""
        raise self._document.wrong(self._place, allowed, names)

    def unknown_key(self, allowed: Sequence[str], what: str = "unknown key") -> NoReturn:
        raise self._document.unknown_key(self._place, allowed, what)

    def word(self, known: Mapping[str, object], what: str, beside: tuple[str, ...] = ()) -> str:
        """Return the one key of a mapping, which must be one of the known words."""
        value = self.value
        if isinstance(value, str) and value in known:
            self.fail(f"{value} needs a value: `{value}: …`")
        if not isinstance(value, dict):
            self.wrong(f"a mapping with one of {', '.join(known)}", tuple(known))
        words = [key for key in value if key not in beside]
        for word in words:
            if word not in known:
                self.at(word).unknown_key(tuple(known), f"no such {what}")
        if len(words) != 1:
            found = " and ".join(words) or "none"
            self.fail(f"found {found}, allowed exactly one of {', '.join(known)}")
        return str(words[0])

    def mapping(
        self, needed: tuple[str, ...], allowed: tuple[str, ...], beside: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """Return a mapping that has the needed keys, and no others than the allowed ones and those of `beside`."""
        value = self.value
        if not isinstance(value, dict):
            self.wrong("a mapping")
        for key in value:
            if key not in (*allowed, *beside):
                self.at(key).unknown_key(allowed)
        for key in needed:
            if key not in value:
                self.fail(f"the key {key} is missing")
        return cast(dict[str, Any], value)

    def list_of(self, what: str) -> list[Self]:
        """Return the values of a list."""
        value = self.value
        if not isinstance(value, list):
            self.wrong(f"a list of {what}")
        return [self.at(index) for index in range(len(value))]

    def convert(self, wanted: type[_T]) -> _T:
        """Return the value as this type."""
        return self._document.convert_at(self._place, wanted, dec_hook=decode_word)
