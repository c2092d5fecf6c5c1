"""A coverage-guided fuzzer: ``python fuzz_target.py -runs=100000``. Whatever the bytes, featstore reads or reports.

The first byte selects what the rest is: a shard, an audio file, a manifest, a group's or an array's document.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["featstore"]):
    from featstore.errors import FeatstoreError, UnusableClip
    from featstore.extract.audio import decode
    from featstore.extract.tar_reader import read_samples
    from featstore.store.format import Commit, unseal
    from featstore.store.layout import parse_layout
    from featstore.tasks import load_manifest

FOLDER = Path(tempfile.mkdtemp(prefix="featstore-fuzz-"))


def one_shard(data: bytes) -> None:
    (FOLDER / "s.tar").write_bytes(data)
    for sample in read_samples(FOLDER / "s.tar"):
        if not sample.problem:
            one_audio_file(sample.audio)


def one_audio_file(data: bytes) -> None:
    try:
        samples = decode(data, sample_rate_hz=16_000, max_seconds=60.0)
    except UnusableClip:
        return
    if samples.ndim != 1 or not len(samples):
        raise AssertionError(samples.shape)


def one_manifest(data: bytes) -> None:
    (FOLDER / "m.toml").write_bytes(data)
    load_manifest(FOLDER / "m.toml")


def one_group_document(data: bytes) -> None:
    content = unseal(data)
    if content is not None and "commit" in content:
        Commit.from_json(content["commit"])


def one_array_document(data: bytes) -> None:
    try:
        parse_layout(data)
    except ValueError:
        return


TARGETS = (one_shard, one_audio_file, one_manifest, one_group_document, one_array_document)


def one_input(data: bytes) -> None:
    if data:
        try:
            TARGETS[data[0] % len(TARGETS)](data[1:])
        except FeatstoreError:
            return


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
