"""Scores on disk: one JSON file a score, named after everything that made it, read back strictly."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

from featstore.errors import ResultsError, UsageError
from featstore.records import Protocol, ScoreRecord, Track

__all__ = ["CHOSEN_SETTINGS", "RESULTS_FORMAT", "read_scores", "write_score"]

RESULTS_FORMAT = 1

CHOSEN_SETTINGS = ("head", "k", "index", "temperature")
"""Settings whose values stand side by side in a report; any other difference means that a score was made again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """A score and when it was written."""

    record: ScoreRecord
    written_at: datetime
    name: str


def write_score(record: ScoreRecord, results_dir: Path, *, written_at: datetime | None = None) -> Path:
    """Write a score in one step and return its file.

    The name holds task, track, protocol, encoder and `ScoreRecord.key`: a score that was made another way has another
    file, and the same score made again has the same.

    Parameters
    ----------
    written_at : datetime, optional
        With a time zone; the present, where it is not given.
    """
    moment = datetime.now(UTC) if written_at is None else written_at.astimezone(UTC)
    envelope = {
        "results_format": RESULTS_FORMAT,
        "written_at": moment.isoformat(),
        "key": record.key,
        "score": record.as_json(),
    }
    try:
        text = json.dumps(envelope, indent=1, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ResultsError(
            f"a score of {record.task} by {record.encoder} cannot be written as JSON: {error}"
        ) from error
    path = results_dir / _file_name(record)
    results_dir.mkdir(parents=True, exist_ok=True)
    _write_in_one_step(path, text + "\n")
    return path


def read_scores(results_dir: Path) -> tuple[ScoreRecord, ...]:
    """Read the newest score of everything that was scored, sorted by task, track, protocol and encoder.

    Of scores that differ in nothing but what changes when a thing is done again (seeds, versions, manifest, features)
    the newest is taken. Scores of one task by two fingerprints of an encoder, or with two heads, stay apart.

    Raises
    ------
    UsageError
        There is no such folder, or no score in it.
    ResultsError
        A file is not a score; it is named.
    """
    if not results_dir.is_dir():
        raise UsageError(f"there is no folder {results_dir}: `featstore probe` and `retrieve` write to --results DIR")
    scores = _newest(_read(path) for path in sorted(results_dir.glob("*.json")))
    if not scores:
        raise UsageError(f"there is no score in {results_dir}: `featstore probe` and `retrieve` write to --results DIR")
    return scores


def _newest(written: Iterable[_Written]) -> tuple[ScoreRecord, ...]:
    newest: dict[tuple[str, ...], _Written] = {}
    for one in written:
        rival = newest.get(_identity(one.record))
        if rival is None or _age(one) > _age(rival):
            newest[_identity(one.record)] = one
    return tuple(newest[identity].record for identity in sorted(newest))


def _age(one: _Written) -> tuple[int, datetime, str]:
    """What the newest of two is chosen by: an older featstore may have written later."""
    return one.record.protocol_version, one.written_at, one.name


def _identity(record: ScoreRecord) -> tuple[str, ...]:
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


def _read(path: Path) -> _Written:
    try:
        envelope = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
        return _parsed(envelope, path.name)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        told = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise ResultsError(f"{path} is not a score ({told}): delete it, and score again") from error


def _parsed(envelope: object, name: str) -> _Written:
    """Check an envelope and what it holds. Raises ValueError, TypeError or KeyError, saying what is wrong."""
    if not isinstance(envelope, Mapping):
        raise TypeError("a JSON object is expected")
    if envelope["results_format"] != RESULTS_FORMAT:
        raise ValueError(f"results format {envelope['results_format']!r}, and this featstore reads {RESULTS_FORMAT}")
    written_at = datetime.fromisoformat(envelope["written_at"])
    if written_at.tzinfo is None:
        raise ValueError("written_at has no time zone")
    raw = envelope["score"]
    if not isinstance(raw, Mapping):
        raise TypeError("score: an object is expected")
    _check_types(raw)
    record = ScoreRecord.from_json(raw)
    if envelope["key"] != record.key:
        raise ValueError("its key does not fit its content: it was changed by hand")
    return _Written(record=record, written_at=written_at, name=name)


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
    parts = (record.task, record.track, record.protocol, record.encoder, record.key)
    return ".".join(re.sub(r"[^A-Za-z0-9_+-]+", "-", part) for part in parts) + ".json"


def _write_in_one_step(path: Path, text: str) -> None:
    """Write beside the file, then take its place: a reader sees the old file or the new one, whole."""
    unfinished = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with unfinished.open("w", encoding="utf-8", errors="backslashreplace") as file:  # half a pair, as JSON says it
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
