"""The only importer of jinja2: templates of self-contained pages.

All text is autoescaped, and the Content-Security-Policy of a page forbids requests, so untrusted text can neither run
nor connect to a server.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import TYPE_CHECKING, Any

from featstore.errors import missing_extra
from featstore.formatting import harmless_json

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

__all__ = ["as_data", "as_markup", "environment", "writable"]


def environment(*packages: str, what: str) -> Environment:
    """Templates of packages and of `featstore.report`.

    Raises
    ------
    UsageError
        jinja2 is not installed; `what` is the feature that needs it.
    """
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise missing_extra(what, error, "report") from error
    return _environment(packages)


@cache  # it keeps the compiled templates
def _environment(packages: tuple[str, ...]) -> Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in (*packages, "featstore.report")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def as_markup(text: str) -> Markup:
    """Mark text as safe markup."""
    from markupsafe import Markup

    return Markup(text)


def as_data(value: Any) -> Markup:
    """JSON for a ``<script type="application/json">``, escaped so that it cannot end the element."""
    text = harmless_json(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")))
    for character in "<>&\u2028\u2029":  # they occur in strings only, where escapes are equivalent
        text = text.replace(character, f"\\u{ord(character):04x}")
    return as_markup(text)


_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def writable(page: str) -> str:
    """The page with control characters escaped, and lone surrogates, which UTF-8 cannot hold, replaced."""
    escaped = _CONTROLS.sub(lambda found: repr(found.group())[1:-1], page)
    return escaped.encode("utf-8", "replace").decode("utf-8")
