"""The one door of jinja2: templates of pages that hold everything and ask for nothing.

Every text goes through jinja2's autoescaping, and a page itself forbids any request (Content-Security-Policy), so what
a label holds can neither run nor call anybody.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from featstore.errors import missing_extra

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

__all__ = ["as_data", "as_markup", "environment", "writable"]


def environment(*packages: str, what: str) -> Environment:
    """Templates of packages, those of `featstore.report` always among them.

    Raises
    ------
    UsageError
        jinja2 is not installed; `what` says what needs it.
    """
    try:
        import jinja2
    except ImportError as error:
        raise missing_extra(what, error, "report") from error
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in (*packages, "featstore.report")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def as_markup(text: str) -> Markup:
    """Markup of featstore's own making, to be put into a page as it is."""
    from markupsafe import Markup

    return Markup(text)


def as_data(value: Any) -> Markup:
    """JSON for a ``<script type="application/json">``: nothing in it can end the element or be taken for markup."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":  # within JSON they stand in strings alone, where an escape means the same
        text = text.replace(character, f"\\u{ord(character):04x}")
    return as_markup(text)


def writable(page: str) -> str:
    """The page as a file can hold it: a lone surrogate, which JSON can hold, is no text that UTF-8 can."""
    return page.encode("utf-8", "replace").decode("utf-8")
