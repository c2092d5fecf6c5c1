"""How an error names a value that came and the word that was probably meant."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Sequence

__all__ = ["did_you_mean", "place_of", "shown", "some_of"]

LONGEST_SHOWN = 60
MOST_LISTED = 12


def shown(value: object) -> str:
    r"""Show a value as an error message does: on one line, and short.

    >>> shown("dog\nbark")
    "'dog\\nbark'"
    >>> len(shown("x" * 1000))
    60
    """
    text = "true" if value is True else "false" if value is False else _encodable(repr(value))
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def _encodable(text: str) -> str:
    """Spell out what a terminal or a log file cannot encode (lone surrogates)."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def some_of(values: Sequence[str]) -> str:
    """List the first dozen values, and how many more there are.

    >>> some_of(["M", "F"])
    "'M', 'F'"
    >>> some_of([str(i) for i in range(100)])[-16:]
    "'11' and 88 more"
    """
    listed = ", ".join(shown(value) for value in values[:MOST_LISTED])
    left_out = len(values) - MOST_LISTED
    return f"{listed} and {left_out} more" if left_out > 0 else listed


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Say ``"; did you mean a or b?"``, or nothing where no known word is near.

    >>> did_you_mean("epoch", ["epochs", "batch_size"])
    '; did you mean epochs?'
    >>> did_you_mean("ESC-50", ["esc50", "fsd50k"])
    '; did you mean esc50?'
    >>> did_you_mean("gtzan", ["gtzan_genre", "esc50"])
    '; did you mean gtzan_genre?'
    >>> did_you_mean("banana", ["epochs"])
    ''
    """
    typed, words = word.lower(), sorted(known)
    begun = [name for name in words if len(typed) > 2 and name.startswith(typed)]
    near = list(dict.fromkeys(difflib.get_close_matches(typed, words, n=3, cutoff=0.7) + begun))[:3]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def place_of(path: Sequence[int | str]) -> str:
    """Spell a place in a manifest, in a form that TOML would understand where it is a key.

    >>> place_of(("probe", "epochs"))
    'probe.epochs'
    >>> place_of(("label", "classes", 3))
    'label.classes[3]'
    >>> place_of(("folds", "fold one"))
    'folds."fold one"'
    """
    place = ""
    for step in path:
        if isinstance(step, int):
            place += f"[{step}]"
        else:
            key = step if re.fullmatch(r"[\w-]+", step) else json.dumps(step)
            place += f".{key}" if place else key
    return place
