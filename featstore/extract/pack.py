"""Packs labelled audio into shards with a draft manifest: `pack`, and `pack_for_store`, which repeats nothing.

Clips are planned without reading audio (`featstore.extract.sources`). Packing streams: one clip is in memory. Shards
are written to a temporary folder that is renamed when all are complete, so that a failed or killed run leaves nothing.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from featstore.clip_json import parse_clip_json
from featstore.errors import DataError, UnusableClip, UsageError
from featstore.extract.audio import decode
from featstore.extract.sources import Clip, Plan, Source, plan_source
from featstore.extract.tar_reader import write_shard
from featstore.files import temporary_folder, write_whole
from featstore.formatting import counted
from featstore.records import SkippedClip
from featstore.tasks import load_manifest
from featstore.tasks.draft import draft_manifest, in_order, roles_of_splits, value_at

__all__ = ["CLIPS_PER_SHARD", "PackRecord", "pack", "pack_clips", "pack_for_store"]

CLIPS_PER_SHARD = 1024
"""A multiple of the 16 clips of an X-ARES batch: no batch is in two shards."""

CHECK_SAMPLE_RATE_HZ = 16_000
RECORD_NAME = "packed.json"
RECORD_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRecord:
    """Result of packing.

    Attributes
    ----------
    folder, manifest : str
        The folder of shards, and the file of the manifest.
    shards, clips : mapping
        Split or fold, as its shards are named, to the number of shards and of clips.
    skipped : tuple of SkippedClip
    splits : mapping
        Split or fold, as `featstore extract` and the store name it, to the name of its shards. Splits that the manifest
        does not use are missing.
    label, kind : str
        Field of the label, and kind of the task.
    found : str
        What the label is: ``a class (12 values)``.
    n_unlabelled : int
        Clips without a label.
    group : str or None
        Field of the groups.
    notes : tuple of str
        Where the splits come from, and warnings.
    reused : bool
        Nothing was packed, because the shards of an earlier run are up to date.
    """

    folder: str
    manifest: str
    shards: Mapping[str, int]
    clips: Mapping[str, int]
    skipped: tuple[SkippedClip, ...]
    splits: Mapping[str, str]
    label: str
    kind: str
    found: str
    n_unlabelled: int
    group: str | None
    notes: tuple[str, ...]
    reused: bool = False

    def as_json(self) -> dict[str, Any]:
        """The record as plain JSON."""
        return asdict(self)


def pack(
    out: Path,
    source: Source,
    *,
    manifest: Path | None = None,
    clips_per_shard: int = CLIPS_PER_SHARD,
    on_clip: Callable[[], object] = lambda: None,
) -> PackRecord:
    """Write the shards of a source to the folder `out` and a draft manifest. Nothing is overwritten.

    Files that cannot be decoded, or whose JSON `extract` would reject, are skipped and listed.

    Raises
    ------
    UsageError
        The source is invalid, or the manifest or a shard of one of the splits exists.
    DataError
        The table cannot be read, or no clip can be packed.
    OSError
        A shard cannot be written. In all cases nothing is left.
    """
    name = _dataset_name(out)
    toml = out.with_name(f"{out.name}.toml") if manifest is None else manifest
    if toml.exists():
        raise UsageError(f"{toml} exists and is not overwritten: give another file with --manifest")
    plan = plan_source(source)
    there = sorted(
        path.name for split in dict.fromkeys(clip.split for clip in plan.clips) for path in out.glob(f"{split}-*.tar")
    )
    if there:
        raise UsageError(f"{out} has {there[0]} already: nothing is overwritten, choose another folder or split")
    is_new = not out.exists()
    plan_sha256 = _sha256_of_plan(plan, clips_per_shard=clips_per_shard)  # before the files are read
    out.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(out) as temporary:
        packed = pack_clips(plan.clips, temporary, clips_per_shard=clips_per_shard, on_clip=on_clip)
        record = _record(packed, plan, out=out, toml=toml)
        text = _checked_draft(name, plan, record, folder=temporary)
        if is_new:
            state = _state(record, plan_sha256=plan_sha256, text=text, clips_per_shard=clips_per_shard)
            write_whole(temporary / RECORD_NAME, state)
            temporary.rename(out)
        else:  # shards of other splits are there: a record would not cover them
            _move_all(temporary, out)
            (out / RECORD_NAME).unlink(missing_ok=True)
    try:
        toml.parent.mkdir(parents=True, exist_ok=True)
        write_whole(toml, text)
    except OSError:
        for split in record.shards:
            for path in out.glob(f"{split}-*.tar"):
                path.unlink()
        if is_new:
            shutil.rmtree(out, ignore_errors=True)
        raise
    return record


def pack_for_store(
    source: Source,
    *,
    store_url: str,
    data_dir: str | None = None,
    on_clip: Callable[[], object] = lambda: None,
) -> PackRecord:
    """Pack a source for an extraction, unless an earlier call did and its files, labels and splits have not changed.

    The shards are in ``DATA/NAME`` and the manifest in ``DATA/NAME.toml``, where NAME is the source's and DATA is by
    default a folder beside the store: ``emb-data`` of ``emb.zarr``. A change of a file is seen from its path, size and
    modification time. Shards whose content is the same are kept, so that an extraction reuses their embeddings. A
    manifest that was edited since is kept.

    Raises
    ------
    UsageError
        The source is invalid; the store is not a folder of this machine and there is no `data_dir`; or the folder or
        the manifest exists and is not of such a call.
    DataError
        The table cannot be read, or no clip can be packed.
    """
    for where, option in ((data_dir, "--data"), (None if data_dir else store_url, "--store")):
        if where is not None and "://" in where:
            raise UsageError(f"{option} {where} is a URL: give a folder with --data, for the shards of the audio")
    store = Path(store_url if Path(store_url).name else os.path.abspath(store_url))  # noqa: PTH100 - not resolved
    data = Path(data_dir) if data_dir is not None else store.with_name(f"{store.name.partition('.')[0]}-data")
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", source.name).strip("-_") or "audio"
    out, toml = data / name, data / f"{name}.toml"
    earlier = _read_state(out / RECORD_NAME)
    if earlier is None:
        for path in (toml, out):
            if path.exists():
                raise UsageError(f"{path} exists, and `extract` did not make it: choose another folder with --data")
        return pack(out, source, on_clip=on_clip)
    plan = plan_source(source)
    packed = _record_of(earlier)
    size: int = earlier["clips_per_shard"]
    plan_sha256 = _sha256_of_plan(plan, clips_per_shard=size)
    if earlier["plan_sha256"] == plan_sha256:
        record = replace(_record(packed, plan, out=out, toml=toml), reused=True)
        with temporary_folder(out) as temporary:
            text = _checked_draft(name, plan, record, folder=temporary)
    else:
        with temporary_folder(out) as temporary:
            fresh = pack_clips(plan.clips, temporary, clips_per_shard=size, on_clip=on_clip)
            record = _record(fresh, plan, out=out, toml=toml)
            text = _checked_draft(name, plan, record, folder=temporary)
            both = {
                split: max(fresh.shards.get(split, 0), packed.shards.get(split, 0))
                for split in {**packed.shards, **fresh.shards}
            }
            pending = {**earlier, "plan_sha256": "", "record": replace(packed, shards=both).as_json()}
            write_whole(out / RECORD_NAME, json.dumps(pending))  # a run that is killed now is repeated
            _replace_shards(temporary, out, earlier=packed.shards)
    written = toml.read_text(encoding="utf-8") if toml.exists() else None
    is_edited = written is not None and _sha256(written) != earlier["manifest_sha256"]
    state = _state(record, plan_sha256=plan_sha256, text=text, clips_per_shard=size)
    if is_edited:
        state = _state(record, plan_sha256=plan_sha256, text=None, clips_per_shard=size)
        record = replace(record, notes=(*record.notes, f"{toml} was edited and is kept"))
    elif written != text:
        write_whole(toml, text)
    if (out / RECORD_NAME).read_text(encoding="utf-8") != state:
        write_whole(out / RECORD_NAME, state)
    return record


# --- writing shards ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packed:
    shards: Mapping[str, int]
    clips: Mapping[str, int]
    skipped: tuple[SkippedClip, ...]


def pack_clips(
    clips: Sequence[Clip], folder: Path, *, clips_per_shard: int, on_clip: Callable[[], object] = lambda: None
) -> _Packed:
    """Write clips, split by split, as ``SPLIT-000000.tar`` and so on. The bytes depend on the clips only.

    Raises
    ------
    DataError
        No clip can be packed.
    """
    skipped: list[SkippedClip] = []
    shards: dict[str, int] = {}
    packed: dict[str, int] = {}
    for split in dict.fromkeys(clip.split for clip in clips):
        n_clips = 0

        def counting(samples: Iterator[dict[str, bytes | str]]) -> Iterator[dict[str, bytes | str]]:
            nonlocal n_clips
            for sample in samples:
                n_clips += 1
                on_clip()
                yield sample

        samples = counting(_samples([clip for clip in clips if clip.split == split], skipped))
        number = 0
        for first in samples:
            write_shard(folder / f"{split}-{number:06d}.tar", chain([first], islice(samples, clips_per_shard - 1)))
            number += 1
        shards[split], packed[split] = number, n_clips
    if not any(packed.values()):
        n_files, first_skipped = counted(len(skipped), "file"), skipped[0]
        raise DataError(
            f"no clip can be packed, {n_files} skipped; the first, {first_skipped.key}: {first_skipped.reason}"
        )
    return _Packed(shards=shards, clips=packed, skipped=tuple(skipped))


def _samples(clips: Sequence[Clip], skipped: list[SkippedClip]) -> Iterator[dict[str, bytes | str]]:
    for clip in clips:
        try:
            meta = _json_of(clip.meta)
            extension, data = clip.read()
            decode(data, sample_rate_hz=CHECK_SAMPLE_RATE_HZ, max_seconds=float("inf"))
        except (OSError, UnusableClip) as error:
            reason = (error.strerror or "it cannot be read").lower() if isinstance(error, OSError) else str(error)
            skipped.append(SkippedClip(shard="", key=clip.name, reason=reason))
            continue
        yield {"__key__": clip.key, extension: data, "json": meta}


def _json_of(meta: Mapping[str, Any]) -> bytes:
    """The JSON of a clip. Raises UnusableClip if `extract` would reject it."""
    try:
        text = json.dumps(meta, ensure_ascii=False, allow_nan=False)
        parse_clip_json(text)
        return text.encode()
    except (ValueError, RecursionError) as error:
        raise UnusableClip(f"its labels are not valid JSON: {' '.join(str(error).split())[:120]}") from error


def _move_all(temporary: Path, folder: Path) -> None:
    """Move the shards into a folder; if one cannot be moved, those that were are deleted."""
    moved: list[Path] = []
    try:
        for path in sorted(temporary.iterdir()):
            moved.append(path.rename(folder / path.name))
    except OSError:
        for path in moved:
            path.unlink()
        raise


def _replace_shards(temporary: Path, folder: Path, *, earlier: Mapping[str, int]) -> None:
    """Put new shards in the place of earlier ones; one with the same content keeps its file and its time."""
    new = {path.name for path in temporary.iterdir()}
    for name in new:
        if not (folder / name).exists() or not filecmp.cmp(temporary / name, folder / name, shallow=False):
            (temporary / name).replace(folder / name)
    for split, n_shards in earlier.items():
        for number in range(n_shards):
            if (name := f"{split}-{number:06d}.tar") not in new:
                with suppress(FileNotFoundError):
                    (folder / name).unlink()


# --- records ----------------------------------------------------------------------------------------------------------


def _dataset_name(out: Path) -> str:
    """Name of the data set: that of the folder. Raises UsageError if it cannot be one."""
    if not out.name:
        raise UsageError(f"the name of OUT is the name of the dataset: got '{out}'; try data/NAME")
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", out.name).strip("-._") or "task"
    if name != out.name:
        raise UsageError(
            f"{out.name!r} cannot be the name of a dataset: letters, digits, '_', '-' and '.'; try {name!r}"
        )
    return name


def _record(packed: _Packed | PackRecord, plan: Plan, *, out: Path, toml: Path) -> PackRecord:
    used = [split for split, n_clips in packed.clips.items() if n_clips]
    roles = roles_of_splits(used)
    names = {split: split for split in in_order(used)} if roles is None else roles
    stored = {split: name for name, split in names.items()}  # of splits with the same shards, the last names them
    return PackRecord(
        folder=str(out),
        manifest=str(toml),
        shards=packed.shards,
        clips=packed.clips,
        skipped=packed.skipped,
        splits={name: split for split, name in stored.items()},
        label=plan.label.field,
        kind=plan.label.kind,
        found=plan.label.description,
        n_unlabelled=sum(value_at(clip.meta, plan.label.field) in (None, "") for clip in plan.clips),
        group=plan.group,
        notes=plan.notes,
    )


def _sha256_of_plan(plan: Plan, *, clips_per_shard: int) -> str:
    """Hash of what the shards depend on: keys, splits, JSON, and path, size and modification time of the files."""
    digest = hashlib.sha256(f"{RECORD_VERSION} {clips_per_shard}\n".encode())
    state: dict[Path, tuple[int, int] | None] = {}
    for clip in plan.clips:
        for path in clip.files:
            if path not in state:
                state[path] = _state_of(path)
        files = [(os.path.abspath(path), state[path]) for path in clip.files]  # noqa: PTH100 - not resolved
        row = [clip.key, clip.split, clip.meta, files, clip.place]
        digest.update(json.dumps(row, default=str).encode() + b"\n")
    return digest.hexdigest()


def _state_of(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _state(record: PackRecord, *, plan_sha256: str, text: str | None, clips_per_shard: int) -> str:
    """The file beside the shards that a later extraction compares with: what they were made of, and the manifest."""
    content = {
        "version": RECORD_VERSION,
        "plan_sha256": plan_sha256,
        "manifest_sha256": "" if text is None else _sha256(text),  # of an edited manifest there is none
        "clips_per_shard": clips_per_shard,
        "record": replace(record, reused=False).as_json(),
    }
    return json.dumps(content, indent=1) + "\n"


def _read_state(path: Path) -> dict[str, Any] | None:
    """The content of the file beside the shards; None if there is none that can be used."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _record_of(content)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return dict(content) if content["version"] == RECORD_VERSION else None


def _record_of(state: Mapping[str, Any]) -> PackRecord:
    record = state["record"]
    return PackRecord(**{**record, "skipped": tuple(SkippedClip(**each) for each in record["skipped"])})


def _checked_draft(name: str, plan: Plan, record: PackRecord, *, folder: Path) -> str:
    """The text of the manifest, after it was read once. Raises ManifestError if it is not a manifest."""
    used = [split for split, n_clips in record.clips.items() if n_clips]
    text = draft_manifest(dataset=name, label=plan.label, splits=used, group=plan.group)
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    load_manifest(path)
    path.unlink()
    return text
