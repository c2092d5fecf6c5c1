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


def expand_braces(pattern: str) -> Iterator[str]:
    """Yield the names that a brace pattern expands to, in the order of bash. A pattern without braces yields itself.

    >>> list(expand_braces("{a,b{1..2}}-{08..10}.tar"))[:4]
    ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b1-08.tar']

    Raises
    ------
    PatternError
        Braces are unbalanced or nested too deeply, or the pattern expands to more than 100,000 names. It is raised
        before the first name is yielded.
    """
    parsed = _parse(pattern, depth=0)
    count, characters = parsed.extent()
    if count > MAX_ALTERNATIVES or characters > MAX_CHARACTERS:
        raise PatternError(
            f"must expand to at most {MAX_ALTERNATIVES:,} names with {MAX_CHARACTERS:,} characters in total, and "
            f"expands to {f'{count:,}' if count < 10**18 else 'far more'}: use a glob such as 'train-*.tar'"
        )
    return iter(parsed)


@dataclass(frozen=True, slots=True)
class _Names:
    """A sequence of plain names."""

    names: Sequence[str]

    def extent(self) -> tuple[int, int]:
        return len(self.names), sum(map(len, self.names))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The numbers of ``{08..10}``, zero-padded if an end has leading zeros."""

    numbers: range
    width: int

    def extent(self) -> tuple[int, int]:
        longest = max(len(str(self.numbers[0])), len(str(self.numbers[-1])), self.width)
        return len(self.numbers), len(self.numbers) * longest

    def __iter__(self) -> Iterator[str]:
        return (f"{number:0{self.width}d}" for number in self.numbers)


@dataclass(frozen=True, slots=True)
class _AnyOf:
    """The alternatives of ``{a,b}``."""

    each: Sequence[_All]

    def extent(self) -> tuple[int, int]:
        counts, characters = zip(*(one.extent() for one in self.each), strict=True)
        return sum(counts), sum(characters)

    def __iter__(self) -> Iterator[str]:
        return (name for one in self.each for name in one)


@dataclass(frozen=True, slots=True)
class _All:
    """The concatenations of the names of all pieces: their Cartesian product."""

    pieces: Sequence[_Names | _Numbers | _AnyOf | _All]

    def extent(self) -> tuple[int, int]:
        count, characters = 1, 0
        for piece in self.pieces:
            n, of_piece = piece.extent()
            count, characters = count * n, characters * n + count * of_piece
        return count, characters

    def __iter__(self) -> Iterator[str]:
        # `product` stores the names of each piece; `expand_braces` has checked the size of the result
        return map("".join, product(*self.pieces))


def _parse(pattern: str, *, depth: int) -> _All:
    if depth > MAX_NESTED:
        raise PatternError(f"must have braces at most {MAX_NESTED} deep")
    pieces: list[_Names | _Numbers | _AnyOf | _All] = []
    at = 0
    while (start := pattern.find("{", at)) >= 0:
        end = _closing(pattern, start)
        pieces += [_literal(pattern[at:start]), _expression(pattern[start + 1 : end], depth=depth + 1)]
        at = end + 1
    return _All([*pieces, _literal(pattern[at:])])


def _literal(text: str) -> _Names:
    if "}" in text:
        raise PatternError(_UNBALANCED)
    return _Names((text,))


def _closing(pattern: str, at: int) -> int:
    """Index of the brace that closes the one at `at`."""
    depth = 0
    for here in range(at, len(pattern)):
        depth += (pattern[here] == "{") - (pattern[here] == "}")
        if not depth:
            return here
    raise PatternError(_UNBALANCED)


def _expression(inner: str, *, depth: int) -> _Names | _Numbers | _AnyOf | _All:
    """Parse the text between two braces: a range, alternatives, or neither, in which case the braces are kept."""
    if found := _NUMBERS.fullmatch(inner):
        first, last = int(found[1]), int(found[2])
        padded = any(text.startswith(("0", "-0")) and text not in ("0", "-0") for text in found.groups()[:2])
        width = max(len(found[1]), len(found[2])) if padded else 0
        return _Numbers(_steps(first, last, int(found[3] or 1) or 1), width)
    if found := _LETTER_RANGE.fullmatch(inner):
        steps = _steps(_LETTERS.index(found[1]), _LETTERS.index(found[2]), int(found[3] or 1) or 1)
        return _Names([_LETTERS[number] for number in steps])
    parts = _split_at_commas(inner)
    if len(parts) > 1:
        return _AnyOf([_parse(part, depth=depth) for part in parts])
    return _All([_Names(("{",)), _parse(inner, depth=depth), _Names(("}",))])


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
