"""Shard patterns of a split: brace expansion with a limit, and matching of shard names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import product
from string import ascii_lowercase, ascii_uppercase

__all__ = ["MAX_ALTERNATIVES", "PatternError", "ShardPattern", "expand_braces", "is_glob", "matches_glob"]


MAX_ALTERNATIVES = 100_000
MAX_CHARACTERS = 64 << 20
MAX_NESTED = 32
_UNBALANCED = "must have balanced braces, such as 'train-{000..009}.tar'"
_LETTERS = ascii_uppercase + ascii_lowercase
_NUMBERS = re.compile(r"(-?[0-9]{1,18})\.\.(-?[0-9]{1,18})(?:\.\.-?([0-9]{1,18}))?")
_LETTER_RANGE = re.compile(r"([A-Za-z])\.\.([A-Za-z])(?:\.\.-?([0-9]{1,18}))?")


class PatternError(ValueError):
    """A pattern is invalid; the message is a predicate, such as ``must have balanced braces``."""


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a brace pattern expands to, in the order of bash. A pattern without braces is one name.

    >>> expand_braces("{a,b{1..2}}-{08..10}.tar")[:4]
    ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b1-08.tar']

    Raises
    ------
    PatternError
        Braces are unbalanced or nested too deeply, or the pattern expands to more than 100,000 names.
    """
    return _expand(pattern, depth=0)


def _expand(pattern: str, *, depth: int) -> list[str]:
    if depth > MAX_NESTED:
        raise PatternError(f"must have braces at most {MAX_NESTED} deep")
    pieces: list[list[str]] = []
    count, characters = 1, 0
    for piece in _pieces(pattern, depth=depth):
        pieces.append(piece)
        count, characters = count * len(piece), characters * len(piece) + count * sum(map(len, piece))
        _require_few(count, characters)
    return list(map("".join, product(*pieces)))


def _require_few(count: int, characters: int) -> None:
    if count > MAX_ALTERNATIVES or characters > MAX_CHARACTERS:
        raise PatternError(
            f"must expand to at most {MAX_ALTERNATIVES:,} names with {MAX_CHARACTERS:,} characters in total: "
            "use a glob such as 'train-*.tar'"
        )


def _pieces(pattern: str, *, depth: int) -> Iterator[list[str]]:
    """Yield the names of each part of a pattern, between braces and in them."""
    at = 0
    while (start := pattern.find("{", at)) >= 0:
        end = _closing(pattern, start)
        yield _literal(pattern[at:start])
        yield _expression(pattern[start + 1 : end], depth=depth + 1)
        at = end + 1
    yield _literal(pattern[at:])


def _literal(text: str) -> list[str]:
    if "}" in text:
        raise PatternError(_UNBALANCED)
    return [text]


def _closing(pattern: str, at: int) -> int:
    """Index of the brace that closes the one at `at`."""
    depth = 0
    for here in range(at, len(pattern)):
        depth += (pattern[here] == "{") - (pattern[here] == "}")
        if not depth:
            return here
    raise PatternError(_UNBALANCED)


def _expression(inner: str, *, depth: int) -> list[str]:
    """Expand the text between two braces: a range, alternatives, or neither, in which case the braces are kept."""
    if found := _NUMBERS.fullmatch(inner):
        padded = any(text.startswith(("0", "-0")) and text not in ("0", "-0") for text in found.groups()[:2])
        width = max(len(found[1]), len(found[2])) if padded else 0
        numbers = _steps(int(found[1]), int(found[2]), int(found[3] or 1) or 1)
        _require_few(len(numbers), 0)
        return [f"{number:0{width}d}" for number in numbers]
    if found := _LETTER_RANGE.fullmatch(inner):
        steps = _steps(_LETTERS.index(found[1]), _LETTERS.index(found[2]), int(found[3] or 1) or 1)
        return [_LETTERS[number] for number in steps]
    parts = _split_at_commas(inner)
    if len(parts) == 1:
        return [f"{{{name}}}" for name in _expand(inner, depth=depth)]
    names: list[str] = []
    for part in parts:
        names += _expand(part, depth=depth)
        _require_few(len(names), 0)
    return names


def _steps(first: int, last: int, step: int) -> range:
    return range(first, last + 1, step) if first < last else range(first, last - 1, -step)


def _split_at_commas(text: str) -> list[str]:
    """Split at the commas that are not inside nested braces."""
    parts, depth, start = [], 0, 0
    for at, sign in enumerate(text):
        depth += (sign == "{") - (sign == "}")
        if sign == "," and not depth:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


@dataclass(frozen=True)  # no slots: the alternatives are expanded once and cached
class ShardPattern:
    """A shard pattern: a glob with brace expansion.

    >>> pattern = ShardPattern("{train,extra}-{00..02}.tar")
    >>> pattern.matches("extra-01.tar"), pattern.matches("test-01.tar"), len(pattern.alternatives)
    (True, False, 6)
    """

    text: str

    @cached_property
    def alternatives(self) -> tuple[str, ...]:
        """Distinct globs and names that the braces expand to. Raises PatternError as `expand_braces` does."""
        return tuple(dict.fromkeys(expand_braces(self.text)))

    @cached_property
    def _globs(self) -> tuple[str, ...]:
        return tuple(each for each in self.alternatives if is_glob(each))

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(_plain(each) for each in self.alternatives if not is_glob(each))

    def matches(self, name: str) -> bool:
        """Whether the pattern matches the shard `name`, a path relative to the dataset's folder."""
        return _plain(name) in self._names or any(matches_glob(name, each) for each in self._globs)

    def unmatched(self, names: Iterable[str]) -> tuple[str, ...]:
        """Alternatives that match none of `names`, in order: shards that the pattern lists and that are missing."""
        present = {_plain(name) for name in names}
        return tuple(
            each
            for each in self.alternatives
            if not (any(matches_glob(name, each) for name in present) if is_glob(each) else _plain(each) in present)
        )


def is_glob(pattern: str) -> bool:
    """Whether a pattern without braces has a wildcard."""
    return not set("*?[").isdisjoint(pattern)


def matches_glob(name: str, pattern: str) -> bool:
    """Whether a name matches a glob: ``*`` matches within one path component, ``**`` matches any number of folders.

    >>> matches_glob("en/a-0.tar", "*/a-*.tar"), matches_glob("en/a-0.tar", "*.tar"), matches_glob("a.tar", "**/*.tar")
    (True, False, True)
    """
    return _parts_match(_plain(name).split("/"), _plain(pattern).split("/"))


def _plain(path: str) -> str:
    """Remove empty and ``.`` components: ``./a//b.tar`` becomes ``a/b.tar``."""
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def _parts_match(names: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_parts_match(names[at:], patterns[1:]) for at in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], patterns[0]) and _parts_match(names[1:], patterns[1:])
