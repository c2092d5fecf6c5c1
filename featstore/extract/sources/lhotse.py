"""Clips of lhotse manifests: a CutSet, or recordings with or without supervisions, as JSON lines (gzipped or not).

The lines are read here, without the library lhotse: its manifests may name shell commands as sources of audio, which it
runs, and reading files and offsets needs none of it. Cuts that need more (mixed or padded cuts, transforms, sources
that are no files) are listed as skipped when packed.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from featstore.errors import DataError, UnusableClip, UsageError
from featstore.extract.segments import read_segment, span_from_duration
from featstore.extract.sources.clips import Clip, ClipColumns, file_clip, is_audio, key_of, unusable
from featstore.extract.table_rows import json_rows, readable

__all__ = ["plan_lhotse"]

_FIELDS = ("text", "language", "speaker", "gender")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """A part of a recording: ``start`` and ``duration`` in seconds, and what is said about it."""

    name: str
    recording: Mapping[str, Any]
    start: float
    duration: float
    channels: tuple[int, ...] | None
    meta: dict[str, Any]
    problem: str = ""


def plan_lhotse(
    paths: Sequence[Path], columns: ClipColumns, *, audio_dir: Path | None
) -> tuple[tuple[Clip, ...], tuple[str, ...]]:
    """List the cuts of a CutSet, or the supervisions of recordings, or else the recordings.

    The JSON of a cut has ``id``, ``recording``, ``start``, ``duration``, its custom fields, and of its supervisions
    ``text``, ``language``, ``speaker``, ``gender`` and the custom fields. If a cut has several supervisions, a field
    in which they differ is a list; ``supervisions`` lists them all as events with ``onset`` and ``offset``. A cut that
    is a complete recording is stored unchanged, others are cut at the sample. Relative paths start from `audio_dir`, by
    default from the current folder, as in lhotse.

    Raises
    ------
    UsageError
        The manifests have no cuts, recordings or supervisions, or supervisions without recordings.
    DataError
        A file cannot be read, or a line is not one of a manifest.
    """
    cuts = list(_cuts(paths))
    if not cuts:
        raise UsageError(f"{', '.join(map(str, paths))} has no cuts: --lhotse takes a CutSet, or recordings")
    columns, notes = columns.completed((cut.meta for cut in cuts), "splits: from the field {!r}")
    clips = []
    for cut in cuts:
        where = f"cut {cut.name}"
        clip = {"name": where, **columns.of(cut.meta, where=where, key=key_of(cut.name, keep_suffix=True))}
        try:
            if cut.problem:
                raise UnusableClip(cut.problem)
            path, channels = _file_of(cut, start=audio_dir or Path())
        except UnusableClip as error:
            clips.append(Clip(**clip, read=unusable(str(error)), place=(cut.start, cut.duration)))
            continue
        if _is_complete(cut) and is_audio(path):
            clips.append(file_clip(path, **clip))
            continue
        span = span_from_duration(cut.start, cut.duration)
        clips.append(
            Clip(
                **clip,
                read=partial(read_segment, path, span, channels=channels),
                files=(path,),
                place=(cut.start, cut.duration, cut.channels),
            )
        )
    return tuple(clips), notes


def _cuts(paths: Sequence[Path]) -> Iterator[_Cut]:
    """The cuts of all lines; supervisions are read after the recordings, whichever file comes first."""
    recordings: dict[str, Mapping[str, Any]] = {}
    supervisions: list[tuple[str, Mapping[str, Any]]] = []
    for path in paths:
        for number, row in _lines(path):
            where = f"{path}, line {number}"
            try:
                if "sources" in row:
                    recordings[str(row["id"])] = row
                elif "recording_id" in row:
                    supervisions.append((where, row))
                else:
                    yield _cut(row)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise DataError(
                    f"{where}: it is not a cut, recording or supervision of lhotse ({type(error).__name__}: {error})"
                ) from error
    if not supervisions:
        for name, recording in recordings.items():
            meta = {"id": name, "recording": name, **_custom(recording)}
            yield _Cut(
                name=name,
                recording=recording,
                start=0.0,
                duration=float(recording["duration"]),
                channels=None,
                meta=meta,
            )
        return
    for where, row in supervisions:
        if row["recording_id"] not in recordings:
            raise UsageError(f"{where}: no recording {row['recording_id']!r}: also give --lhotse RECORDINGS")
        start, duration = float(row["start"]), float(row["duration"])
        meta = {"id": row["id"], "recording": row["recording_id"], "start": start, "duration": duration}
        yield _Cut(
            name=str(row["id"]), recording=recordings[row["recording_id"]], start=start, duration=duration,
            channels=_channels(row.get("channel")), meta={**meta, **_said(row)},
        )  # fmt: skip


def _cut(row: Mapping[str, Any]) -> _Cut:
    """A line of a CutSet. Raises KeyError, TypeError or ValueError for another line."""
    name, kind = str(row["id"]), row["type"]
    if kind not in ("MonoCut", "MultiCut"):
        problem = f"it is a {kind}: make it with `cuts.save_audios` of lhotse first"
        return _Cut(name=name, recording={}, start=0.0, duration=0.0, channels=None, meta={"id": name}, problem=problem)
    recording = row.get("recording")
    start, duration = float(row["start"]), float(row["duration"])
    meta: dict[str, Any] = {
        "id": name,
        "recording": recording["id"] if recording else None,
        "start": start,
        "duration": duration,
        **_custom(row),
    }
    found = row.get("supervisions") or []
    said = [_said(each) for each in found]
    for field in dict.fromkeys(field for each in said for field in each):
        values = [each[field] for each in said if field in each]
        distinct = [value for at, value in enumerate(values) if value not in values[:at]]
        meta.setdefault(field, distinct[0] if len(distinct) == 1 else distinct)
    if found:
        meta["supervisions"] = [
            {
                "onset": max(0.0, float(each["start"])),
                "offset": float(each["start"]) + float(each["duration"]),
                **fields,
            }
            for each, fields in zip(found, said, strict=True)
        ]
    return _Cut(
        name=name,
        recording=recording or {},
        start=start,
        duration=duration,
        channels=_channels(row.get("channel")),
        meta=meta,
        problem="" if recording else "it has no recording, only features",
    )


def _said(supervision: Mapping[str, Any]) -> dict[str, Any]:
    """The labels of a supervision."""
    fields = {name: supervision[name] for name in _FIELDS if supervision.get(name) is not None}
    return {**fields, **_custom(supervision)}


def _custom(row: Mapping[str, Any]) -> dict[str, Any]:
    """The custom fields that are not arrays or recordings of their own."""
    return {
        name: value
        for name, value in (row.get("custom") or {}).items()
        if not (isinstance(value, Mapping) and ("sources" in value or "array" in value or "storage_type" in value))
    }


def _channels(channel: Any) -> tuple[int, ...] | None:
    if channel is None:
        return None
    return tuple(map(int, channel)) if isinstance(channel, list) else (int(channel),)


def _file_of(cut: _Cut, *, start: Path) -> tuple[Path, tuple[int, ...] | None]:
    """The file of a cut's recording, and which of the file's channels are the cut's; None for all.

    Raises UnusableClip if the recording is not one file as it is.
    """
    sources = cut.recording.get("sources") or []
    if cut.recording.get("transforms"):
        raise UnusableClip("its recording has transforms: make it with `cuts.save_audios` of lhotse first")
    if len(sources) != 1:
        raise UnusableClip(f"its recording is in {len(sources)} files, and one is needed")
    kind, source = sources[0].get("type"), sources[0].get("source")
    if kind != "file" or not isinstance(source, str):
        raise UnusableClip(f"its recording is of type {kind!r}, which is not read: write it to a file")
    named = list(sources[0].get("channels") or [])
    if cut.channels is None or not named:
        return start / source, cut.channels
    if missing := [channel for channel in cut.channels if channel not in named]:
        raise UnusableClip(f"its recording has no channel {missing[0]}")
    return start / source, tuple(named.index(channel) for channel in cut.channels)


def _is_complete(cut: _Cut) -> bool:
    """Whether a cut is its recording from end to end, with all of its channels."""
    recording = cut.recording
    total, rate = recording.get("num_samples"), recording.get("sampling_rate")
    if not isinstance(total, int) or not isinstance(rate, int) or cut.start != 0:
        return False
    channels = sorted(each for source in recording.get("sources", []) for each in source.get("channels", []))
    return span_from_duration(0.0, cut.duration)(rate) == (0, total) and (
        cut.channels is None or sorted(cut.channels) == channels
    )


def _lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with (
        readable(str(path)),
        gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file,
    ):
        yield from json_rows(file, path)
