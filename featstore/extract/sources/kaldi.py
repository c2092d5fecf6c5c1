"""Clips of a Kaldi data folder: ``wav.scp``, and if they are there ``segments``, ``utt2*``, ``spk2*`` and ``text``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from featstore.errors import DataError, UsageError
from featstore.extract.segments import read_segment, span_from_end
from featstore.extract.sources.clips import Clip, ClipColumns, file_clip, is_audio, key_of, unusable
from featstore.extract.table_rows import readable

__all__ = ["plan_kaldi"]

SPEAKER = "speaker"
"""Name of the field that ``utt2spk`` becomes; ``utt2X`` becomes X."""


def plan_kaldi(
    folder: Path, columns: ClipColumns, *, audio_dir: Path | None
) -> tuple[tuple[Clip, ...], tuple[str, ...]]:
    """List the utterances of a data folder in the order of ``segments``, or of ``wav.scp``.

    The JSON of an utterance has ``utterance``, ``recording``, ``speaker`` (of ``utt2spk``), ``text`` and the value of
    each other file ``utt2X`` and ``spk2X`` as X. An utterance that is a complete recording is stored unchanged, a
    segment is cut at the sample. Relative paths start from `audio_dir`, by default from the folder.

    An utterance whose recording is a command (``sox in.wav -t wav - |``) or a piece of an archive is listed as skipped
    when packed: no command of a data folder is run.

    Raises
    ------
    UsageError
        There is no ``wav.scp``.
    DataError
        A file cannot be read or has an invalid line.
    """
    if not (folder / "wav.scp").is_file():
        raise UsageError(f"{folder} has no wav.scp: --kaldi takes a Kaldi data folder")
    recordings = dict(_pairs(folder / "wav.scp"))
    start = folder if audio_dir is None else audio_dir
    fields = {
        path.name: dict(_pairs(path))
        for path in sorted(folder.iterdir())
        if path.is_file()
        and (path.name == "text" or (path.name.startswith(("utt2", "spk2")) and "." not in path.name))
        and path.name != "spk2utt"
    }
    segments = list(_segments(folder / "segments")) if (folder / "segments").is_file() else None
    utterances = [(name, name, None) for name in recordings] if segments is None else segments
    found = []
    for utterance, recording, times in utterances:
        meta: dict[str, str | float] = {"utterance": utterance, "recording": recording}
        speaker = fields.get("utt2spk", {}).get(utterance)
        for name, values in fields.items():
            value = values.get(speaker or "") if name.startswith("spk2") else values.get(utterance)
            if value is not None:
                meta[SPEAKER if name == "utt2spk" else name.removeprefix("utt2").removeprefix("spk2")] = value
        if times is not None:
            meta["start"], meta["end"] = times
        found.append((utterance, recordings.get(recording), times, meta))
    if not found:
        raise UsageError(f"{folder}/{'wav.scp' if segments is None else 'segments'} has no utterances")
    columns, notes = columns.completed((meta for *_, meta in found), "splits: from utt2{}")
    clips = []
    for utterance, named, times, meta in found:
        where = f"utterance {utterance}"
        clip = {"name": where, **columns.of(meta, where=where, key=key_of(utterance, keep_suffix=True))}
        path = start / (named or "")
        if problem := _problem(named):
            clips.append(Clip(**clip, read=unusable(problem), place=(named,)))
        elif times is None:
            clips.append(file_clip(path, **clip))
        else:
            first, end = times
            read = partial(read_segment, path, span_from_end(first, None if end < 0 else end))
            clips.append(Clip(**clip, read=read, files=(path,), place=(first, end)))
    return tuple(clips), notes


def _problem(named: str | None) -> str:
    """Why the audio of a line of wav.scp is not read; empty if it is a file."""
    if named is None:
        return "wav.scp has no such recording"
    if named.rstrip().endswith("|") or named.lstrip().startswith("|"):
        return "its recording is a command, which is not run: write it to a file"
    head, colon, offset = named.rpartition(":")
    if colon and offset.isdigit() and head.endswith(".ark"):
        return "its recording is in an archive, which is not read: write it to a file"
    if not is_audio(Path(named)):
        return f"{named[:60]} is not an audio file"
    return ""


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    """Name and value of each line. Raises DataError for a name that is given twice."""
    seen = set()
    for number, line in _lines(path):
        name, *rest = line.split(maxsplit=1)
        if name in seen:
            raise DataError(f"{path}, line {number}: {name} is given twice")
        seen.add(name)
        if rest:
            yield name, rest[0].strip()


def _segments(path: Path) -> Iterator[tuple[str, str, tuple[float, float] | None]]:
    seen = set()
    for number, line in _lines(path):
        parts = line.split()
        try:
            utterance, recording, first, end = parts
            times = (float(first), float(end))
        except ValueError:
            raise DataError(f"{path}, line {number}: a line is UTTERANCE RECORDING START END, got {line!r}") from None
        if utterance in seen:
            raise DataError(f"{path}, line {number}: {utterance} is given twice")
        seen.add(utterance)
        yield utterance, recording, times


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are not empty, with their numbers."""
    with readable(str(path)):
        lines = path.read_text(encoding="utf-8").split("\n")
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
