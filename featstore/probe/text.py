"""Text as probes read and write it: normalised transcripts, words, and the alphabet of a CTC head."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Alphabet", "normalised", "words"]

BLANK = 0


def normalised(text: str) -> str:
    """Put a transcript in the form that is learned from and scored.

    NFKC and lower case; letters, their marks, digits and apostrophes inside words stay, everything else is space; one
    space between words.

    >>> normalised("“Don’t”, she said -- 'TWICE'!")
    "don't she said twice"
    """
    folded = unicodedata.normalize("NFKC", text).replace("\u2019", "'").lower()
    kept = "".join(each if each == "'" or unicodedata.category(each)[0] in "LMN" else " " for each in folded)
    return " ".join(word for word in (word.strip("'") for word in kept.split()) if word)


def words(text: str) -> list[str]:
    """Cut a text into the words of its normalised form.

    >>> words("A dog, barking.")
    ['a', 'dog', 'barking']
    """
    return normalised(text).split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Alphabet:
    """Characters that a CTC head tells apart: number 0 is the blank, number n the n-th character."""

    characters: tuple[str, ...]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Alphabet:
        """Characters of some texts, in order of their code points."""
        return cls(characters=tuple(sorted(set().union(*map(set, texts)))))

    def __len__(self) -> int:
        """Count the blank too."""
        return len(self.characters) + 1

    def encode(self, text: str) -> NDArray[np.int64]:
        """Spell a text in numbers, int64 (n,); characters that are not in the alphabet are left out."""
        number = {character: at for at, character in enumerate(self.characters, start=1)}
        return np.array([number[each] for each in text if each in number], dtype=np.int64)

    def collapse(self, best: NDArray[np.int64]) -> str:
        """Read off greedy decoding: runs of one symbol are one, then blanks go (Graves et al. 2006).

        >>> Alphabet(characters=(" ", "a", "b")).collapse(np.array([2, 2, 0, 2, 3, 3, 0, 1, 1]))
        'aab'
        """
        begins = np.diff(best, prepend=-1) != 0
        spelt = "".join(self.characters[number - 1] for number in best[begins & (best != BLANK)])
        return " ".join(spelt.split())
