"""Colour for a terminal: verdict words stand out. NO_COLOR turns it off (https://no-color.org)."""

from __future__ import annotations

import os
import re
from typing import Final, TextIO

GREEN, RED, YELLOW, PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[33m", "\x1b[0m"
WORDS: Final = {"PASS": GREEN, "FAIL": RED, "UNKNOWN": YELLOW, "missed": RED, "unknown": YELLOW}
_VERDICT: Final = re.compile(r"\b(?:PASS|FAIL|UNKNOWN)\b|^(?:missed|unknown)(?=  )", re.MULTILINE)
"""A verdict anywhere, and the first column of the table of expectations."""


def wanted(stream: TextIO) -> bool:
    """Whether the stream is a terminal that shows colour."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def coloured(text: str) -> str:
    """The text with its verdict words in colour."""
    return _VERDICT.sub(lambda match: f"{WORDS[match[0]]}{match[0]}{PLAIN}", text)
