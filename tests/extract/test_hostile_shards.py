"""Shards that somebody made to do harm, or that a disk has harmed: never a crash, a hang, or memory without bounds.

What cannot be used is recorded with its reason; a tar that is no tar is one `ShardError`; no other exception comes out.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import featstore
from featstore.cli import main
from featstore.errors import ShardError, UnusableClip
from featstore.extract.audio import MAX_AMPLITUDE, decode
from featstore.extract.shard_reader import ClipRead, ClipStream, ShardBegins, ShardBreaks, ShardEnds
from featstore.extract.shards import Shard
from handmade import RATE, Member, audio_bytes, clip, extract, noise, tar_bytes, task_toml, write_tar
from tiny import task

AUDIO = {
    extension: audio_bytes(noise(0.05, seed=n), extension) for n, extension in enumerate(("wav", "flac", "ogg", "mp3"))
}


def members() -> list[Member]:
    """One sample of each format, with JSON of several kinds."""
    metas = [b'{"label": "a"}', b'{"label": {"deep": [1, 2.5, null, true]}}', '{"label": "\u00e9"}'.encode(), b"[]"]
    return [
        member
        for (extension, data), meta in zip(AUDIO.items(), metas, strict=True)
        for member in ((f"folder/{extension}-clip.{extension}", data), (f"folder/{extension}-clip.json", meta))
    ]


TARS = {
    "ustar": tar_bytes(members()),
    "gzip": gzip.compress(tar_bytes(members()), 6, mtime=0),
    "long names": tar_bytes([(f"{'n' * 200}/{name}", data) for name, data in members()]),
}


def flipped(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 12)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def overwritten(data: bytearray, rng: random.Random) -> None:
    at, size = rng.randrange(len(data)), rng.choice([1, 4, 12, 100, 512])
    filler = rng.choice([b"\x00", b"\xff", b"7", b"\x80", bytes([rng.randrange(256)])])
    data[at : at + size] = filler * min(size, len(data) - at)


def cut(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice([1, 511, 512, 513, 5000])]


def truncated(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def doubled(data: bytearray, rng: random.Random) -> None:
    at, size = rng.randrange(len(data)), rng.choice([3, 512, 1024, 4096])
    data[at:at] = data[at : at + size]


def spliced(data: bytearray, rng: random.Random) -> None:
    other = rng.choice([*TARS.values(), *AUDIO.values()])
    start = rng.randrange(len(other))
    data[rng.randrange(len(data)) :] = other[start:]


def header_field(data: bytearray, rng: random.Random) -> None:
    """A lie in a tar header, under a checksum that is right."""
    at = rng.randrange(len(data) // 512) * 512
    block = data[at : at + 512]
    field, size = rng.choice([(0, 100), (124, 12), (156, 1), (157, 100), (257, 8), (345, 155)])
    lies = [
        bytes(size),
        b"\xff" * size,
        b"\x80" + bytes(max(0, size - 3)) + b"\xff\xff",
        b"7" * (size - 1),
        rng.choice([b"L", b"K", b"x", b"g", b"S", b"1", b"2", b"3", b"5", b"7", b"Z"]),
        b"../../../etc/passwd",
        bytes(rng.randrange(256) for _ in range(size)),
    ]
    block[field : field + size] = rng.choice(lies)[:size].ljust(size, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    data[at : at + 512] = block


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    flipped, overwritten, cut, truncated, doubled, spliced, header_field, header_field, header_field,
)  # fmt: skip


def mutated_shard(seed: int) -> bytes:
    """A shard with a fault in the archive, in the audio or in the JSON, or in several."""
    rng = random.Random(seed)
    if rng.random() < 0.5:
        data = bytearray(rng.choice(list(TARS.values())))
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            if len(data) > 1024:
                rng.choice(MUTATIONS)(data, rng)
        return bytes(data)
    changed = []
    for name, content in members():
        inner = bytearray(content)
        if rng.random() < 0.5:
            rng.choice(MUTATIONS[:6])(inner, rng)
        changed.append((name, bytes(inner)))
    return tar_bytes(changed)


def check_is_read_or_told(path: Path, content: bytes, *, seconds: float = 20.0) -> str:
    """Read a shard the way extraction does, decode every clip, and hold what comes out to the rules."""
    path.write_bytes(content)
    began = time.monotonic()
    keys: list[str] = []
    end = ""
    with ClipStream(
        [Shard(name=path.name, path=path)], sample_rate_hz=RATE, max_clip_seconds=60.0, decode_threads=2
    ) as stream:
        for event in stream:
            if isinstance(event, ClipRead):
                event.key.encode()
                assert len(event.key) <= 1100
                reason = event.decoded.exception(timeout=seconds)
                if isinstance(reason, UnusableClip):
                    assert "\n" not in str(reason)
                    str(reason).encode()
                    continue
                decoded = event.decoded.result()
                keys.append(decoded.key)
                json.loads(decoded.meta)
                assert decoded.samples.dtype == np.float32
                assert decoded.samples.ndim == 1
                assert 0 < len(decoded.samples) <= 61 * RATE
                assert np.abs(decoded.samples).max() <= MAX_AMPLITUDE
            elif isinstance(event, ShardBreaks):
                assert "\n" not in str(event.error)
                end = "broken"
            elif isinstance(event, ShardEnds):
                end = "whole"
            else:
                assert isinstance(event, ShardBegins)
    assert end
    assert len(set(keys)) == len(keys)
    assert time.monotonic() - began < seconds
    return end


def fuzz(folder: Path, seeds: range) -> None:
    ends = []
    for seed in seeds:
        try:
            ends.append(check_is_read_or_told(folder / "s.tar", mutated_shard(seed)))
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
    # a fuzzer whose every shard breaks at its first byte tests nothing
    assert min(ends.count("whole"), ends.count("broken")) > len(seeds) // 10


def test_two_hundred_mutated_shards_are_read_or_reported(tmp_path: Path) -> None:
    fuzz(tmp_path, range(200))


@pytest.mark.slow
def test_two_thousand_mutated_shards_are_read_or_reported(tmp_path: Path) -> None:
    fuzz(tmp_path, range(1000, 3000))


def test_mutated_shards_go_into_a_store_that_reads(tmp_path: Path) -> None:
    """Not only the reading of them: what was committed of twenty is a store that plain reading agrees with."""
    for seed in range(5000, 5020):
        path = tmp_path / f"data/tiny/train-{seed}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mutated_shard(seed))
    with pytest.raises(ShardError, match=r"^[^\n]*$"):
        extract(task(), tmp_path / "data", tmp_path / "store")
    fs = featstore.open(str(tmp_path / "store")).select()
    assert len(fs) == len(fs.key) == len(fs.meta_json) == len(fs.utterance) > 0
    assert np.isfinite(fs.utterance).all()
    assert fs.skipped


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=3000))
def test_bytes_of_any_kind_decode_or_are_unusable(data: bytes) -> None:
    for prefix in (
        b"",
        b"RIFF\x00\x00\x00\x00WAVEfmt ",
        b"fLaC\x00\x00\x00\x22",
        b"OggS\x00\x02",
        b"ID3\x04\x00",
        b"\xff\xfb\x90d",
    ):
        try:
            samples = decode(prefix + data, sample_rate_hz=RATE, max_seconds=60.0)
        except UnusableClip:
            continue
        assert len(samples)


JSON_TEXTS = st.recursive(st.none() | st.floats() | st.text(), st.lists).map(lambda value: json.dumps(value).encode())


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40), max_size=4),
    meta=st.binary(max_size=50) | JSON_TEXTS,
)
def test_names_and_json_of_any_kind_are_accepted_or_reported(names: list[str], meta: bytes, tmp_path: Path) -> None:
    listed = [m for name in names for m in ((f"{name}.wav", AUDIO["wav"]), (f"{name}.json", meta))]
    assert check_is_read_or_told(tmp_path / "s.tar", tar_bytes(listed)) == "whole"


def pax(name: str) -> bytes:
    """A sample under a name of any length, with whatever is in it, as a pax header can carry it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for extension, content in (("wav", AUDIO["wav"]), ("json", b"{}")):
            info = tarfile.TarInfo("short")
            info.pax_headers = {"path": f"{name}.{extension}"}
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("nul\0in it", "nul\\x00in it"),
        ("line\nbreak", "line\\x0abreak"),
        ("\x1b[2J", "\\x1b[2J"),
        ("c1\x9b31m", "c1\\x9b31m"),
        ("del\x7f", "del\\x7f"),
    ],
)
def test_a_key_with_control_characters_is_skipped_and_listed(key: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "data/tiny/train-0.tar"
    path.parent.mkdir(parents=True)
    path.write_bytes(pax(key))
    [record] = extract(task(), tmp_path / "data", tmp_path / "store")
    assert record.clips == 0
    assert [skipped.key for skipped in record.skipped] == [named]


@pytest.mark.parametrize(
    "key",
    ["../../../tmp/evil", "/etc/cron.d/evil", "c:\\evil", "~root", "$(reboot)", " ",
     "\u202egnp", "a" * 1024],
)  # fmt: skip
def test_a_key_is_text_and_never_a_file_name(key: str, tmp_path: Path) -> None:
    path = tmp_path / "data/tiny/train-0.tar"
    path.parent.mkdir(parents=True)
    path.write_bytes(pax(key))
    before = set(tmp_path.rglob("*"))
    [record] = extract(task(), tmp_path / "data", tmp_path / "store")
    assert list(featstore.open(str(tmp_path / "store")).select().key) == [key]
    assert record.skipped == ()
    assert {path.relative_to(tmp_path).parts[0] for path in set(tmp_path.rglob("*")) - before} == {"store"}


def test_a_key_of_ten_thousand_characters_is_skipped_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "data/tiny/train-0.tar"
    path.parent.mkdir(parents=True)
    path.write_bytes(pax("k" * 10_000))
    [record] = extract(task(), tmp_path / "data", tmp_path / "store")
    [left_out] = record.skipped
    assert "10,000" in left_out.reason
    assert len(left_out.key) < 200


def test_a_key_that_is_no_utf8_is_skipped_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "data/tiny/train-0.tar"
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as tar:
        for name, content in (("\u00e9.wav", AUDIO["wav"]), ("\u00e9.json", b"{}")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    [record] = extract(task(), tmp_path / "data", tmp_path / "store")
    [left_out] = record.skipped
    assert left_out.key == "\\udce9"
    assert "UTF-8" in left_out.reason


@pytest.mark.parametrize(
    "meta",
    [b"[" * 200_000, b'{"a":' * 50_000 + b"1" + b"}" * 50_000, b"9" * 100_000, b'{"a": 1e999999}', b'"\\ud800"',
     b"\xef\xbb\xbf{}", b"[" + b"[]," * 300_000 + b"[]]", b"", b"\x00", b"NaN"],
    ids=["deep list", "deep object", "huge number", "huge float", "surrogate", "byte order mark", "many lists",
         "nothing", "NUL", "NaN"],
)  # fmt: skip
def test_json_that_is_deep_or_huge_or_none_is_taken_or_skipped(meta: bytes, tmp_path: Path) -> None:
    write_tar(tmp_path / "data/tiny/train-0.tar", [("a.wav", AUDIO["wav"]), ("a.json", meta), *clip("b", noise(0.1))])
    extract(task(), tmp_path / "data", tmp_path / "store")
    fs = featstore.open(str(tmp_path / "store")).select()
    assert len(fs) + len(fs.skipped) == 2
    assert fs.key[-1] == "b"
    if len(fs) == 2:
        assert fs.meta_json[0] == meta.decode()


def test_what_was_skipped_is_in_the_commit_record_and_in_the_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(
        tmp_path / "data/tiny/train-0.tar", [("bad.flac", b"fLaC"), ("bad.json", b"{}"), *clip("good", noise(0.1))]
    )
    task_toml(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["extract", "tiny.toml", "--encoder", "logmel", "--data", "data", "--store", "store", "--split", "train"])
    assert not ended.value.code
    assert "train-0.tar 'bad': " in capsys.readouterr().out
    documents = [json.loads(path.read_text()) for path in (tmp_path / "store").rglob("zarr.json")]
    [commit] = [
        document["attributes"]["featstore"]["commit"]
        for document in documents
        if "commit" in document.get("attributes", {}).get("featstore", {})
    ]
    assert "bad" in json.dumps(commit)
    assert "decoded" in json.dumps(commit)
