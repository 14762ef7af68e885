"""Colours of verdict words on a terminal. NO_COLOR turns them off (https://no-color.org)."""

from __future__ import annotations

import os
import re
from typing import Final, TextIO

GREEN, RED, YELLOW, PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[33m", "\x1b[0m"
WORDS: Final = {"PASS": GREEN, "FAIL": RED, "UNKNOWN": YELLOW, "missed": RED, "unknown": YELLOW}
_VERDICT: Final = re.compile(r"\b(?:PASS|FAIL|UNKNOWN)\b|^(?:missed|unknown)(?=  )", re.MULTILINE)
"""A verdict anywhere, or a word in the first column of the table of expectations."""


def wanted(stream: TextIO) -> bool:
    """Return whether the stream is a terminal that shows colours."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def coloured(text: str) -> str:
    """Return the text with its verdict words in colour."""
    return _VERDICT.sub(lambda match: f"{WORDS[match[0]]}{match[0]}{PLAIN}", text)
