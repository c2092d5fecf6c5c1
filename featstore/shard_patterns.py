"""Which shards a pattern of a manifest names. Pure: extraction matches files by it, scoring what a store holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from featstore.braces import expand_braces

__all__ = ["ShardPattern", "is_glob", "matches_glob"]


@dataclass(frozen=True)  # no slots: the alternatives are expanded once and cached
class ShardPattern:
    """A shard pattern: a glob, with braces for alternatives.

    >>> pattern = ShardPattern("{train,extra}-{00..02}.tar")
    >>> pattern.matches("extra-01.tar"), pattern.matches("test-01.tar"), len(pattern.alternatives)
    (True, False, 6)
    """

    text: str

    @cached_property
    def alternatives(self) -> tuple[str, ...]:
        """Globs and names that the braces stand for, each once; PatternError where `expand_braces` refuses them."""
        return tuple(dict.fromkeys(expand_braces(self.text)))

    @cached_property
    def _globs(self) -> tuple[str, ...]:
        return tuple(each for each in self.alternatives if is_glob(each))

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(_plain(each) for each in self.alternatives if not is_glob(each))

    def matches(self, name: str) -> bool:
        """Whether the pattern names the shard `name`, a path relative to its dataset's folder."""
        return _plain(name) in self._names or any(matches_glob(name, each) for each in self._globs)

    def unmatched(self, names: Iterable[str]) -> tuple[str, ...]:
        """Alternatives that match none of `names`, in order: shards that the pattern lists and that are missing."""
        there = {_plain(name) for name in names}
        return tuple(
            each
            for each in self.alternatives
            if not (any(matches_glob(name, each) for name in there) if is_glob(each) else _plain(each) in there)
        )


def is_glob(pattern: str) -> bool:
    """Whether a pattern without braces has a wildcard."""
    return not set("*?[").isdisjoint(pattern)


def matches_glob(name: str, pattern: str) -> bool:
    """Whether a key matches as a path below a folder would: ``*`` stays within a name, ``**`` spans folders.

    >>> matches_glob("en/a-0.tar", "*/a-*.tar"), matches_glob("en/a-0.tar", "*.tar"), matches_glob("a.tar", "**/*.tar")
    (True, False, True)
    """
    return _parts_match(_plain(name).split("/"), _plain(pattern).split("/"))


def _plain(path: str) -> str:
    """A path without empty parts and dots: ``./a//b.tar`` is ``a/b.tar``."""
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def _parts_match(names: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_parts_match(names[at:], patterns[1:]) for at in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], patterns[0]) and _parts_match(names[1:], patterns[1:])
