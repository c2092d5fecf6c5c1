"""Result files: one sealed JSON file per score, named by its key and validated when it is read.

A file has the score and metadata. Its ``generation`` is one more than the highest generation of the files of the same
task, track, protocol and encoder in the folder; of two scores of one identity, the higher generation is newer,
independent of clocks. ``seal`` is the SHA-256 of the canonical JSON of everything else, which detects any change. Older
files have neither; they are read, and listed as unsealed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from featstore.diagnostics.certificate import CERTIFICATE_SUFFIX, Certificate, read_certificate
from featstore.errors import ResultsError, UsageError
from featstore.files import write_whole
from featstore.records import Protocol, ScoreRecord, Track, canonical_json, sha256_of

__all__ = [
    "CHOSEN_SETTINGS",
    "RESULTS_FORMAT",
    "Results",
    "identity_of",
    "read_certificates",
    "read_results",
    "read_scores",
    "renamed_encoders",
    "write_score",
]

RESULTS_FORMAT = 1

CHOSEN_SETTINGS = ("measure", "head", "k", "index", "temperature", "split_by")
"""Settings that distinguish scores in a report; scores that differ in nothing else are repetitions of one score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """The scores of one or more folders.

    Attributes
    ----------
    scores : tuple of ScoreRecord
        The newest scores, sorted by task, track, protocol and encoder.
    unsealed : tuple of str
        Names of the files of `scores` without a seal: written by an older featstore or by hand.
    failures : tuple of ResultsError
        Files that were skipped because they are damaged or changed: one error of one line for each.
    """

    scores: tuple[ScoreRecord, ...]
    unsealed: tuple[str, ...]
    failures: tuple[ResultsError, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """A score and the metadata of its file."""

    record: ScoreRecord
    generation: int
    written_at: datetime
    name: str
    is_sealed: bool

    @property
    def age(self) -> tuple[int, int, datetime, str]:
        """Sort key in a folder, highest for the newest. Only files without a generation are compared by time.

        The protocol version is first, because an older featstore may have written later.
        """
        time = datetime.min.replace(tzinfo=UTC) if self.generation else self.written_at
        return self.record.protocol_version, self.generation, time, self.name


def write_score(
    record: ScoreRecord, results_dir: str | os.PathLike[str], *, written_at: datetime | None = None
) -> Path:
    """Write a score atomically and return its file.

    The name has task, track, protocol, encoder, measure (except ``knn``) and `ScoreRecord.key`: the same score is
    written to the same file again, and a score with other settings to another file.

    Parameters
    ----------
    written_at : datetime, optional
        With a time zone, for display; the current time by default.

    Raises
    ------
    ResultsError
        The score cannot be written as JSON.
    OSError
        The file cannot be written; an earlier file is unchanged.
    """
    results_dir = Path(results_dir)
    moment = datetime.now(UTC) if written_at is None else written_at.astimezone(UTC)
    envelope = {
        "results_format": RESULTS_FORMAT,
        "written_at": moment.isoformat(),
        "generation": 1 + _latest_generation(record, results_dir),
        "key": record.key,
        "score": record.as_json(),
    }
    try:
        content = json.loads(json.dumps(envelope, allow_nan=False))  # as it will be read, with keys as text
        text = json.dumps({**content, "seal": _seal(content)}, indent=1, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ResultsError(
            f"a score of {record.task} by {record.encoder} cannot be written as JSON: {error}"
        ) from error
    path = results_dir / _file_name(record)
    results_dir.mkdir(parents=True, exist_ok=True)
    write_whole(path, text + "\n")
    return path


def read_scores(results_dir: str | os.PathLike[str]) -> tuple[ScoreRecord, ...]:
    """Read the scores of a folder without damaged files; see `read_results`.

    Raises
    ------
    UsageError
        The folder does not exist or has no score.
    ResultsError
        A file is not a score, or was changed.
    """
    results = read_results(results_dir)
    if results.failures:
        raise results.failures[0]
    return results.scores


def read_results(*folders: str | os.PathLike[str]) -> Results:
    """Read the newest score of everything that was scored, and list the files that are damaged.

    Of scores that differ only in what changes when a score is computed again (seeds, versions, manifest, features), the
    newest is kept: within a folder by generation, between folders by protocol version and time. Scores of one task by
    two fingerprints of an encoder, or with two heads, are different scores.

    Raises
    ------
    UsageError
        A folder does not exist, or holds no file of a score.
    """
    written: list[_Written] = []
    failures: list[ResultsError] = []
    for folder in dict.fromkeys(map(Path, folders)):
        if not folder.is_dir():
            raise UsageError(f"there is no folder {folder}: `featstore probe` and `retrieve` write to --results DIR")
        here: list[_Written] = []
        n_failures = len(failures)
        for path in sorted(folder.glob("[!.]*.json")):
            # zarr.json is that of a store: the advice to delete a damaged score would destroy it
            if path.name == "zarr.json" or path.name.endswith(CERTIFICATE_SUFFIX):
                continue
            try:
                here.append(_read(path))
            except ResultsError as error:
                failures.append(error)
        if not here and len(failures) == n_failures:
            raise UsageError(f"there is no score in {folder}: `featstore probe` and `retrieve` write to --results DIR")
        written += _newest(here, age=lambda one: one.age)
    newest = _newest(written, age=lambda one: (one.record.protocol_version, one.written_at))
    return Results(
        scores=tuple(each.record for each in newest),
        unsealed=tuple(each.name for each in newest if not each.is_sealed),
        failures=tuple(failures),
    )


def read_certificates(*folders: str | os.PathLike[str]) -> tuple[tuple[Certificate, ...], tuple[ResultsError, ...]]:
    """Read the certificates (``*.certificate.json``) in folders of results.

    Returns
    -------
    tuple of Certificate
    tuple of ResultsError
        One for each file that is not a certificate, or was changed.
    """
    found: list[Certificate] = []
    failures: list[ResultsError] = []
    for folder in dict.fromkeys(map(Path, folders)):
        for path in sorted(folder.glob(f"[!.]*{CERTIFICATE_SUFFIX}")):
            try:
                found.append(read_certificate(path))
            except ResultsError as error:
                failures.append(error)
    return tuple(found), tuple(failures)


def _newest(written: Iterable[_Written], *, age: Callable[[_Written], tuple[Any, ...]]) -> tuple[_Written, ...]:
    newest: dict[tuple[str, ...], _Written] = {}
    for one in written:
        rival = newest.get(identity_of(one.record))
        if rival is None or age(one) > age(rival):
            newest[identity_of(one.record)] = one
    return tuple(newest[identity] for identity in sorted(newest))


def _latest_generation(record: ScoreRecord, results_dir: Path) -> int:
    """The highest generation of scores that this one may replace; unreadable files are ignored."""
    found = [0]
    for path in results_dir.glob(f"{_file_stem(record)}.*.json"):
        with contextlib.suppress(ResultsError):
            found.append(_read(path).generation)
    return max(found)


def _seal(envelope: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a file without its seal."""
    return sha256_of({name: value for name, value in envelope.items() if name != "seal"})


def identity_of(record: ScoreRecord) -> tuple[str, ...]:
    """Identity of a score: scores with the same identity are repetitions, of which the newest counts."""
    chosen = (json.dumps(record.settings.get(name)) for name in CHOSEN_SETTINGS)
    return (
        record.task,
        record.track,
        record.protocol,
        record.encoder,
        record.fingerprint,
        record.metric,
        *chosen,
    )


def renamed_encoders(records: Iterable[ScoreRecord]) -> tuple[tuple[str, ...], ...]:
    """Names of each encoder that `records` have under several names: the same fingerprint on the same embeddings."""
    names: dict[tuple[str, str], set[str]] = {}
    for record in records:
        if record.features:
            names.setdefault((record.fingerprint, canonical_json(record.features)), set()).add(record.encoder)
    return tuple(sorted({tuple(sorted(each)) for each in names.values() if len(each) > 1}))


def _read(path: Path) -> _Written:
    try:
        envelope = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
        return _parsed(envelope, path.name)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        problem = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise ResultsError(f"{path} is not a score ({problem}): delete it, and score again") from error


def _parsed(envelope: object, name: str) -> _Written:
    """Validate a file. Raises ValueError, TypeError or KeyError."""
    if not isinstance(envelope, Mapping):
        raise TypeError("expected a JSON object")
    if envelope["results_format"] != RESULTS_FORMAT:
        raise ValueError(f"results format {envelope['results_format']!r}; this featstore reads {RESULTS_FORMAT}")
    generation = envelope.get("generation", 0)
    if not _is_count(generation):
        raise ValueError("generation: a count is expected")
    written_at = datetime.fromisoformat(envelope["written_at"])
    if written_at.tzinfo is None:
        raise ValueError("written_at has no time zone")
    raw = envelope["score"]
    if not isinstance(raw, Mapping):
        raise TypeError("score: an object is expected")
    _check_types(raw)
    record = ScoreRecord.from_json(raw)
    if envelope["key"] != record.key:
        raise ValueError("its key does not match its content: it was changed")
    if "seal" in envelope and envelope["seal"] != _seal(envelope):
        raise ValueError("its seal does not match its content: it was changed")
    return _Written(
        record=record, generation=generation, written_at=written_at, name=name, is_sealed="seal" in envelope
    )


_TEXT = ("task", "title", "encoder", "fingerprint", "metric", "manifest_sha256")
_NUMBERS = ("value", "eval_weight")
_NUMBERS_OR_NONE = ("std", "ci_low", "ci_high")
_COUNTS = ("n_train", "n_valid", "n_test", "n_skipped")
_OBJECTS = ("seconds", "versions", "settings", "features", "details")
_ONE_OF = {"track": get_args(Track), "protocol": get_args(Protocol)}


def _check_types(raw: Mapping[str, Any]) -> None:
    problems = [f"{name}: text is expected" for name in _TEXT if not isinstance(raw[name], str)]
    problems += [f"{name}: a finite number is expected" for name in _NUMBERS if not _is_number(raw[name])]
    problems += [
        f"{name}: a finite number or null is expected"
        for name in _NUMBERS_OR_NONE
        if raw[name] is not None and not _is_number(raw[name])
    ]
    problems += [f"{name}: a count is expected" for name in _COUNTS if not _is_count(raw[name])]
    problems += [f"{name}: an object is expected" for name in _OBJECTS if not isinstance(raw.get(name, {}), Mapping)]
    problems += [
        f"{name}: one of {', '.join(allowed)}" for name, allowed in _ONE_OF.items() if raw[name] not in allowed
    ]
    if not _is_count(raw.get("protocol_version", 1)):
        problems.append("protocol_version: a count is expected")
    if not isinstance(raw["seeds"], list) or not all(_is_count(seed) for seed in raw["seeds"]):
        problems.append("seeds: a list of whole numbers is expected")
    if not isinstance(raw["private"], bool):
        problems.append("private: true or false is expected")
    if problems:
        raise ValueError("; ".join(problems))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number")


def _file_name(record: ScoreRecord) -> str:
    return f"{_file_stem(record)}.{record.key}.json"


def _file_stem(record: ScoreRecord) -> str:
    measure = () if record.measure in ("", "knn") else (record.measure,)
    parts = (record.task, record.track, record.protocol, record.encoder, *measure)
    return ".".join(re.sub(r"[^A-Za-z0-9_+-]+", "-", part) for part in parts)
