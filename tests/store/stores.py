"""Small stores with known contents, and a reader of them that knows nothing of featstore."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.errors

from featstore.records import Recipe, SkippedClip
from featstore.store import EmbeddedWindow, Member, ShardIdentity, SplitWriter, open_split_writer
from featstore.store.format import seal, unseal
from featstore.store.liveness import writing_document

DIM = 6
Contents = Mapping[str, Mapping[str, Any]]


def recipe(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "encoder": "tiny",
        "encoder_identity": {"class": "Tiny"},
        "sample_rate_hz": 16000,
        "dim": DIM,
        "hop_seconds": 0.02,
        "padding": "0.25",
        "precision": "float32",
        "frame_dtype": "float16",
        "resampler": "none",
        "format_version": 1,
    }
    return Recipe(**{**fields, **changes})


def window(name: str, *, n_frames: int, seed: int, dim: int = DIM, start: float = 0.0) -> EmbeddedWindow:
    frames = np.random.default_rng(seed).standard_normal((n_frames, dim)).astype(np.float16)
    return EmbeddedWindow(
        key=name,
        meta=f'{{"label": "é{seed % 3}", "n": {seed}}}',
        start_seconds=start,
        seconds=n_frames * 0.02,
        utterance=frames.astype(np.float32).mean(axis=0),
        frames=frames,
    )


def shard_windows(shard: str, *, n: int = 5, seed: int = 0, dim: int = DIM) -> list[EmbeddedWindow]:
    first = sum(shard.encode()) * 100 + seed
    rng = np.random.default_rng(first)
    return [window(f"{shard}-{at}", n_frames=int(rng.integers(1, 9)), seed=first + at, dim=dim) for at in range(n)]


def split_writer(url: str | Path, *, split: str = "train", **changes: Any) -> SplitWriter:
    made = recipe(**changes)
    return open_split_writer(str(url), recipe=made, spec="tiny", dataset="words", crop_seconds=None, split=split)


def write_part(
    writer: SplitWriter,
    shard: str,
    windows: Sequence[EmbeddedWindow],
    *,
    size: int = 1,
    skipped: Sequence[SkippedClip] = (),
    frames_stored: bool = True,
) -> None:
    with writer.begin_part(shard) as part:
        for each in windows:
            part.add(each)
        member = Member(
            shard=ShardIdentity(name=shard, size=size, mtime_ns=7, sha256=f"{shard}:{size}"),
            clips=sum(each.start_seconds == 0 for each in windows),
            windows=part.windows,
            frames=part.frames,
            audio_seconds=float(sum(each.seconds for each in windows)),
            skipped=tuple(skipped),
        )
        part.commit([member], frames_stored=frames_stored, versions={"featstore": "test"})


def make_store(url: str | Path, *, shards: Sequence[str] = ("a.tar", "b.tar", "c.tar"), n: int = 5) -> None:
    writer = split_writer(url)
    for shard in shards:
        write_part(writer, shard, shard_windows(shard, n=n))
    writer.write_catalogue()


def writing(**changes: Any) -> bytes:
    """Document of an in-flight part of this process, or of one that differs from it."""
    content = unseal(writing_document())
    assert content is not None
    return seal({"writing": {**content["writing"], "writer": "another", **changes}})


DEAD_HERE = {"pid": 2**22 + 1, "process_started": 1}
"""A process of this boot and process namespace that is gone."""


def make_bare_store(url: str | Path) -> None:
    """One clip, without its frames."""
    write_part(split_writer(url), "a.tar", [replace(window("k", n_frames=2, seed=0), frames=None)], frames_stored=False)


def contents_by_plain_zarr(url: str | Path) -> Contents:
    """Every committed part's arrays and members, by the names of its shards; read by zarr alone."""
    with warnings.catch_warnings():
        # zarr warns of a file that is no part of a hierarchy, such as a killed process may leave; it reads on
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        return _contents(zarr.open_group(str(url), mode="r"))


def _contents(root: zarr.Group) -> Contents:
    found: dict[str, Mapping[str, Any]] = {}
    for encoder_name, encoder in root.groups():
        for dataset_name, dataset in encoder.groups():
            for split_name, split in dataset.groups():
                for _, part in split.groups():
                    commit = part.attrs.get("featstore", {}).get("commit")
                    if commit is None:
                        continue
                    shards = "+".join(member["shard"]["name"] for member in commit["members"])
                    name = f"{encoder_name}/{dataset_name}/{split_name}/{shards}"
                    if name in found:
                        raise AssertionError(f"two parts of {name}")
                    arrays = {key: np.asarray(array[...]) for key, array in part.arrays()}
                    found[name] = {**arrays, "members": commit["members"]}
    return found


def bytes_of_parts(store: Path) -> dict[str, Any]:
    """Files of every committed part, and the members that its document names, by the names of its shards.

    What `contents_by_plain_zarr` reads, before it is decoded, and much sooner.
    """
    found: dict[str, Any] = {}
    for document in store.glob("*/*/*/*/zarr.json"):
        commit = json.loads(document.read_bytes())["attributes"].get("featstore", {}).get("commit")
        if commit is not None:
            part = document.parent
            files = {path.relative_to(part).as_posix(): path.read_bytes() for path in part.rglob("*") if path.is_file()}
            del files["zarr.json"]
            name = f"{part.parent.relative_to(store)}/{'+'.join(each['shard']['name'] for each in commit['members'])}"
            assert name not in found, f"two parts of {name}"
            found[name] = {**files, "members": commit["members"]}
    return found


def assert_same_contents(one: str | Path, other: str | Path, *, ignoring: Sequence[str] = ("mtime_ns",)) -> None:
    """Two stores hold the same, bit for bit."""
    assert_equal_contents(contents_by_plain_zarr(one), contents_by_plain_zarr(other), ignoring=ignoring)


def assert_equal_contents(left: Contents, right: Contents, *, ignoring: Sequence[str] = ("mtime_ns",)) -> None:
    """What two stores hold is the same, bit for bit."""
    assert sorted(left) == sorted(right)
    for name, arrays in left.items():
        assert sorted(arrays) == sorted(right[name])
        for key, values in arrays.items():
            if key == "members":
                for mine, theirs in zip(values, right[name][key], strict=True):
                    drop = set(ignoring)
                    assert {k: v for k, v in mine["shard"].items() if k not in drop} == {
                        k: v for k, v in theirs["shard"].items() if k not in drop
                    }
                    assert {k: v for k, v in mine.items() if k != "shard"} == {
                        k: v for k, v in theirs.items() if k != "shard"
                    }
            else:
                assert values.dtype == right[name][key].dtype
                assert values.tobytes() == right[name][key].tobytes() or values.tolist() == right[name][key].tolist()
