"""HTML pages from templates: each page is one file, loads nothing, and escapes the texts that it shows."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

import jinja2

_STATIC: Final = Path(__file__).parent / "static"
_TEMPLATES: Final = Path(__file__).parent / "templates"


@cache
def template(file: Path) -> jinja2.Template:
    """Return a template that escapes all values, and refuses values that it was not given. It may include head.html."""
    loader = jinja2.FileSystemLoader((file.parent, _TEMPLATES))
    made = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    made.undefined = jinja2.StrictUndefined
    return made.get_template(file.name)


@cache
def static(name: str) -> str:
    """Return the text of a script or style sheet in lab/show/static, to be put into a page."""
    return (_STATIC / name).read_text("utf-8")


def policy(style: str, scripts: Sequence[str] = ()) -> str:
    """Return the content security policy: only these scripts and this style sheet are allowed, and no request."""
    allowed = f" script-src {' '.join(map(_hash, scripts))};" if scripts else ""
    return f"default-src 'none';{allowed} style-src {_hash(style)}; base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
