"""Tasks of recorded audio, from two packages of Debian: letters and syllables in many languages, and studio sounds.

Each task is a table of files that are installed, with a label and, where clips are not drawn class by class over
declared splits, what takes its place. `corpus` and `benchmarks.real` pack them.

In ``klettres-data`` a language is one speaker in one room with one microphone: the task "languages" is as easy as
telling these apart, and "letters" tests on speakers that training never hears.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

KLETTRES, SONIC_PI = Path("/usr/share/klettres"), Path("/usr/share/sonic-pi/samples")
PACKAGES = {KLETTRES: "klettres-data", SONIC_PI: "sonic-pi-samples"}

MIN_CLIPS_OF_A_LANGUAGE = 40
SPELLED = ("da", "de", "en", "en_GB", "es", "fr", "it", "nds", "nl", "pt_BR")
"""Languages whose files are named as what is said is spelled, in letters a to z."""
VALID_SPEAKERS, TEST_SPEAKERS = ("en_GB", "nl"), ("fr", "nds", "pt_BR")
KINDS_OF_SOUND = ("ambi", "bass", "bd", "drum", "elec", "glitch", "loop", "perc", "tabla")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One recording: what a line of the table says."""

    path: Path
    label: str
    speaker: str
    split: str

    @property
    def key(self) -> str:
        """Of the clip that `featstore pack` makes of it."""
        return "_".join(self.path.with_suffix("").parts)


@dataclass(frozen=True, kw_only=True)
class RealTask:
    """A task, and where its recordings come from; a label of several words is a set of labels."""

    name: str
    folder: Path
    rows: Callable[[], list[Row]]
    kind: str = "clip"
    metric: str = "accuracy"
    crop_seconds: float | None = None


def languages() -> list[Row]:
    """Which language (and so which speaker) it is."""
    found = list(_klettres())
    counts = Counter(path.parts[0] for path in found)
    return _split([Row(path=path, label=path.parts[0], speaker=path.parts[0], split="") for path in found
                   if counts[path.parts[0]] >= MIN_CLIPS_OF_A_LANGUAGE])  # fmt: skip


def letters() -> list[Row]:
    """Which letter of the alphabet it is, by speakers that training does not hear."""
    rows = []
    for path in _klettres():
        language, kind, name = path.parts
        if kind == "alpha" and language in SPELLED and re.fullmatch(r"[a-zA-Z]\.ogg", name):
            split = "valid" if language in VALID_SPEAKERS else "test" if language in TEST_SPEAKERS else "train"
            rows.append(Row(path=path, label=name[0].lower(), speaker=language, split=split))
    return rows


def spelling() -> list[Row]:
    """Which letters a spoken syllable or word is written with: those that thirty have."""
    found = {
        path: set(re.sub("[^a-z]", "", path.stem.lower()))
        for path in _klettres()
        if path.parts[1] == "syllab" and path.parts[0] in SPELLED
    }
    counts = Counter(letter for used in found.values() for letter in used)
    rows = [
        Row(path=path, label=" ".join(sorted(x for x in used if counts[x] >= 30)), speaker=path.parts[0], split="")
        for path, used in found.items()
    ]
    return _split([row for row in rows if row.label], by=lambda row: row.speaker)


def sounds() -> list[Row]:
    """Which kind of sound it is: one set for all, tested in five folds."""
    named = [Path(path.name) for path in sorted(SONIC_PI.glob("*.flac"))]
    kinds = [(path, path.name.split("_")[0]) for path in named]
    return [Row(path=path, label=kind, speaker="", split="all") for path, kind in kinds if kind in KINDS_OF_SOUND]


TASKS = (
    RealTask(name="languages", folder=KLETTRES, rows=languages),
    RealTask(name="letters", folder=KLETTRES, rows=letters),
    RealTask(name="spelling", folder=KLETTRES, rows=spelling, kind="multilabel", metric="mAP"),
    RealTask(name="sounds", folder=SONIC_PI, rows=sounds, crop_seconds=2.0),
)


def _klettres() -> Iterator[Path]:
    """Recordings as LANGUAGE/alpha/NAME.ogg and LANGUAGE/syllab/NAME.ogg, in order."""
    yield from sorted(path.relative_to(KLETTRES) for path in KLETTRES.glob("*/*/*.ogg"))


def _split(rows: list[Row], *, by: Callable[[Row], str] = lambda row: row.label) -> list[Row]:
    """Half of each stratum trains, three of twenty select, seven of twenty are tested: by the hash of their paths."""
    strata: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        strata[by(row)].append(row)
    found = []
    for stratum in strata.values():
        ranked = sorted(stratum, key=lambda row: hashlib.sha256(row.path.as_posix().encode()).digest())
        for rank, row in enumerate(ranked):
            share = (rank + 0.5) / len(ranked)
            split = "train" if share < 0.5 else "valid" if share < 0.65 else "test"
            found.append(Row(path=row.path, label=row.label, speaker=row.speaker, split=split))
    return sorted(found, key=lambda row: row.path)
