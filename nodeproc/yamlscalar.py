"""The meaning of plain YAML scalars: as in YAML 1.2, without those that other versions of YAML read differently. Pure.

Words such as `on`, `yes` and `2024-01-01` are text. Numbers that the versions read differently are refused: 010 is 10
or 8, 1_000 is 1000 or text, 1:30 is text or 90. Numbers that are not finite or have more than 64 bits are refused too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TypeAlias

Scalar: TypeAlias = str | int | float | bool | None

LARGEST_INT = 2**63 - 1
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_NUMBER_START = re.compile(r"[-+]?\.?[0-9]|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def read_plain(text: str) -> Scalar:
    """Return the value of a scalar without quotes.

    Raises:
        ValueError: the scalar is ambiguous or an unsupported number; the text says what to write instead.
    """
    if text in _WORDS:
        return _WORDS[text]
    if not _NUMBER_START.match(text):
        return text
    if _INT.fullmatch(text) or _HEX.fullmatch(text):
        if len(text) > 20 or abs(int(text, 0)) > LARGEST_INT:
            raise ValueError(f"found {_cut(text)}, allowed whole numbers of 64 bits, or quotes around text")
        return int(text, 0)
    if _NOT_FINITE.fullmatch(text) or (_FLOAT.fullmatch(text) and not math.isfinite(float(text))):
        raise ValueError(f"found {_cut(text)}, allowed finite numbers")
    if _FLOAT.fullmatch(text):
        return float(text)
    for pattern, readings in _AMBIGUOUS:
        if pattern.fullmatch(text):
            raise ValueError(f"found {_cut(text)}, which is {readings(text)}: write the intended one, text in quotes")
    return text


def _leading_zero(text: str) -> str:
    sign, digits = text[: -len(text.lstrip("+-"))].replace("+", ""), _plain(text.lstrip("+-"))
    decimal = f"{sign}{_cut(digits.lstrip('0') or '0')}"
    if set(digits) <= set("01234567"):
        return f"{decimal} or, in octal, {sign}{_cut(str(int(digits[:40], 8)))}"
    return f"{decimal} or text"


def _base_60(text: str) -> str:
    value = 0.0
    for part in _plain(text.lstrip("+-")).split(":"):
        value = value * 60 + float(part)
    return f"text or, in base 60, {'-' if text[0] == '-' else ''}{value:.15g}"


def _plain(text: str) -> str:
    return text.replace("_", "")


_AMBIGUOUS: tuple[tuple[re.Pattern[str], Callable[[str], str]], ...] = tuple(
    (re.compile(pattern), readings)
    for pattern, readings in (
        (r"[-+]?0[0-9_]+", _leading_zero),
        (r"[-+]?0[0-9_]+(\.[0-9_]*)?([eE][-+]?[0-9]+)?", lambda text: f"{float(_plain(text)):.15g} or text"),
        (r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?", _base_60),
        (r"[-+]?0b[01_]+", lambda text: f"text or, in binary, {_cut(_plain(text))}"),
        (r"0o[0-7]+", lambda text: f"{int(text[:40], 8)} or text"),
        (r"[-+]?0x_*[0-9a-fA-F][0-9a-fA-F_]*", lambda text: f"text or, in base 16, {int(_plain(text)[:40], 16)}"),
        (r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?", lambda text: f"{_cut(_plain(text))} or text"),
    )
)
"""Regular expression of an ambiguous number -> the two readings."""


def _cut(text: str) -> str:
    return text if len(text) <= 30 else f"{text[:27]}..."
