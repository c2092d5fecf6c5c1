"""Shards, member by member: what becomes a sample, what is left out and why, and what is no shard at all."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from pathlib import Path

import pytest

from featstore.errors import ShardError
from featstore.extract import tar_reader as tars
from featstore.extract.tar_reader import Sample, read_samples, write_shard
from handmade import Member, tar_bytes, write_tar

GOOD: list[Member] = [("a.wav", b"A" * 700), ("a.json", b"{}"), ("b.flac", b"B"), ("b.json", b"[]")]


def read(path: Path) -> list[Sample]:
    return list(read_samples(path))


def problems(path: Path) -> dict[str, str]:
    return {sample.key: sample.problem for sample in read(path) if sample.problem}


def broken(path: Path) -> str:
    with pytest.raises(ShardError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


def link(name: str, kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, tarfile.USTAR_FORMAT) for name in ("a", "folder/a", "ü" * 40)),
        *((name, tarfile.GNU_FORMAT) for name in ("a", "folder/a", "ü" * 400)),
        *((name, tarfile.PAX_FORMAT) for name in ("a", "folder/a", "ü" * 400)),
    ],
)
def test_samples_are_read_from_every_kind_of_tar(name: str, form: int, tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for extension, content in (("wav", b"sound"), ("json", b"{}")):
            info = tarfile.TarInfo(f"{name}.{extension}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert read(path) == [Sample(key=name, audio=b"sound", extension="wav", meta=b"{}")]


def test_samples_come_in_order_with_their_bytes(tmp_path: Path) -> None:
    found = read(write_tar(tmp_path / "s.tar", GOOD))
    assert [(s.key, s.audio, s.extension, s.meta, s.problem) for s in found] == [
        ("a", b"A" * 700, "wav", b"{}", ""),
        ("b", b"B", "flac", b"[]", ""),
    ]


def test_a_gzipped_shard_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "s.tar.gz"
    path.write_bytes(gzip.compress(tar_bytes(GOOD)))
    assert [sample.key for sample in read(path)] == ["a", "b"]


def test_extensions_are_read_whatever_their_case_and_flac_goes_before_wav(tmp_path: Path) -> None:
    [sample] = read(write_tar(tmp_path / "s.tar", [("a.WAV", b"w"), ("a.FLAC", b"f"), ("a.JSON", b"{}")]))
    assert (sample.audio, sample.extension, sample.meta) == (b"f", "flac", b"{}")


def test_a_shard_without_samples_is_whole(tmp_path: Path) -> None:
    assert read(write_tar(tmp_path / "s.tar", [])) == []


def test_folders_hidden_files_and_files_without_extension_are_passed_over(tmp_path: Path) -> None:
    members = [link("clips", tarfile.DIRTYPE), ("README", b"x"), ("._a.wav", b"AppleDouble"), *GOOD]
    found = read(write_tar(tmp_path / "s.tar", members))
    assert [(sample.key, sample.problem) for sample in found] == [("a", ""), ("b", "")]


@pytest.mark.parametrize(
    ("members", "key", "reason"),
    [
        ([("a.wav", b"x")], "a", ".json member (found: wav)"),
        ([("a.json", b"{}"), ("a.txt", b"x")], "a", "audio member (found: json, txt)"),
        ([("a.wav", b"x"), ("a.wav", b"y"), ("a.json", b"{}")], "a.wav", "second"),
        ([("a.1.wav", b"x"), ("a.2.wav", b"y"), ("a.json", b"{}")], "a", "wav member (1.wav, 2.wav)"),
        ([("song.01.wav", b"x"), ("song.01.json", b"{}")], "song", ".json member (found: 01.json, 01.wav)"),
        ([link("a.wav", tarfile.SYMTYPE), ("a.json", b"{}")], "a.wav", "link"),
        ([link("a.wav", tarfile.LNKTYPE, "b.wav"), ("a.json", b"{}")], "a.wav", "link"),
        ([link("a.wav", tarfile.FIFOTYPE), ("a.json", b"{}")], "a.wav", "device"),
        ([("a.__bad__", b"x"), ("a.wav", b"x"), ("a.json", b"{}")], None, ""),
        ([("a.__key__.wav", b"x")], "a.__key__.wav", "key"),
    ],
)  # fmt: skip
def test_what_is_skipped_is_reported_with_its_reason(
    members: list[Member], key: str | None, reason: str, tmp_path: Path
) -> None:
    found = problems(write_tar(tmp_path / "s.tar", members))
    if key is None:
        assert found == {}
    else:
        assert reason in found[key]


def test_members_that_no_sample_needs_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "MAX_MEMBER_BYTES", 1000)
    path = write_tar(tmp_path / "s.tar", [("a.mp4", bytes(5000)), ("a.wav", b"w"), ("a.json", b"{}")])
    assert problems(path) == {}


def test_a_member_that_is_too_large_is_skipped_and_the_rest_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars, "MAX_MEMBER_BYTES", 1000)
    path = write_tar(tmp_path / "s.tar", [("big.wav", bytes(1001)), ("big.json", b"{}"), *GOOD])
    found = problems(path)
    assert re.search(r"1,001\b.*1,000\b", found["big.wav"])
    assert [sample.key for sample in read(path) if not sample.problem] == ["a", "b"]


def test_json_has_a_limit_of_its_own(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [("a.wav", b"w"), ("a.json", b" " * (5 << 20))])
    assert "4,194,304" in problems(path)["a.json"]


def test_a_truncated_tar_is_no_shard_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = tar_bytes(GOOD)
    path = tmp_path / "s.tar"
    # of the end mark one block is enough: what other tools leave of it differs
    end_of_members = 512 * (1 + 2 + 2 + 2 + 2)
    for length in [0, 1, 511, 512, 900, 1535, 1536, 2000, end_of_members - 1, end_of_members, end_of_members + 511]:
        path.write_bytes(whole[:length])
        assert "s.tar" in broken(path), length
    path.write_bytes(whole[: end_of_members + 512])
    assert len(read(path)) == 2


def test_a_truncated_gzip_is_no_shard(tmp_path: Path) -> None:
    packed = gzip.compress(tar_bytes(GOOD))
    path = tmp_path / "s.tar.gz"
    for length in [2, 10, len(packed) // 2, len(packed) - 1, len(packed) - 8]:
        path.write_bytes(packed[:length])
        broken(path)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x1f\x8b", b"PK\x03\x04" + bytes(600), b"\xfd7zXZ\x00" + bytes(900)]
)
def test_a_file_of_another_kind_is_no_shard(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(content)
    broken(path)


def test_a_shard_that_is_not_there_is_reported(tmp_path: Path) -> None:
    assert "s.tar" in broken(tmp_path / "s.tar")


def test_damage_between_members_is_no_end(tmp_path: Path) -> None:
    whole = bytearray(tar_bytes(GOOD))
    whole[512 * 3 : 512 * 3 + 8] = b"\xff" * 8  # the name in the second header: its checksum is wrong now
    path = tmp_path / "s.tar"
    path.write_bytes(bytes(whole))
    assert "byte 1,536" in broken(path)


def test_a_second_archive_behind_the_first_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(tar_bytes(GOOD) + tar_bytes(GOOD))
    assert "damaged" in broken(path)


def header(name: str, size_field: bytes, kind: bytes = b"0") -> bytes:
    """A ustar header with any size in it, under a right checksum."""
    block = bytearray(512)
    block[0 : len(name)] = name.encode()
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136] = size_field.ljust(12, b"\0")
    block[136:148], block[156:157], block[257:265] = b"00000000000\0", kind, b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def negative(number: int) -> bytes:
    return b"\xff" * 4 + (number & (1 << 64) - 1).to_bytes(8, "big")


@pytest.mark.parametrize(
    "content",
    [
        header("a.wav", negative(-512)) + bytes(1024),
        header("a.wav", negative(-1)) + bytes(1024),
        tar_bytes(GOOD)[:1536] + header("b.wav", negative(-2048)) + bytes(1024),
        header("long", b"77777777777\0", b"L") + bytes(2048),
        header("pax", b"77777777777\0", b"x") + bytes(2048),
        header("pax", negative(-512), b"x") + bytes(2048),
        header("long", b"00000200000\0", b"L") + b"n" * 65_536 + tar_bytes(GOOD),
        header("a.wav", b"\x80" + b"\xff" * 11) + bytes(1024),
        b"".join(header(f"pax{i}", b"00000001000\0", b"x") + bytes(512) for i in range(3000)),
    ],
    ids=["back to itself", "minus one", "back", "endless name", "endless pax", "pax of minus one block", "64 KiB name",
         "astronomical", "headers of headers"],
)  # fmt: skip
def test_a_header_that_lies_about_its_size_breaks_the_shard_and_nothing_else(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(content)
    broken(path)


def test_a_gzip_bomb_is_stopped(tmp_path: Path) -> None:
    path = tmp_path / "s.tar.gz"
    bomb = tar_bytes([("a.bin", bytes(80 << 20)), ("a.json", b"{}")])
    path.write_bytes(gzip.compress(bomb, 1))
    assert "20 times" in broken(path)


def test_sparse_members_are_skipped(tmp_path: Path) -> None:
    name = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.wav",
            "GNU.sparse.realsize": "1000000000000"}  # fmt: skip
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("GNUSparseFile.0/a.wav")
        info.pax_headers = name
        info.size = 512
        tar.addfile(info, io.BytesIO(b"1\n0\n1\n".ljust(512, b"\0")))
        for member, content in (("a.json", b"{}"), *GOOD[2:]):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert "sparse" in problems(path)["a.wav"]
    assert [sample.key for sample in read(path) if not sample.problem] == ["b"]


def test_a_written_shard_is_read_by_tarfile_and_its_bytes_depend_on_its_samples_alone(tmp_path: Path) -> None:
    samples = [{"__key__": "a", "flac": b"sound", "json": b"{}"}, {"__key__": "b", "flac": b"s", "json": b"{}"}]
    for name in ("one.tar", "two.tar"):
        write_shard(tmp_path / name, samples)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.tar", "two.tar"]
    with tarfile.open(tmp_path / "one.tar") as tar:
        assert tar.getnames() == ["a.flac", "a.json", "b.flac", "b.json"]
        assert {member.mtime for member in tar} == {0}


def test_a_shard_that_could_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    def samples():  # type: ignore[no-untyped-def]
        yield {"__key__": "a", "flac": b"sound"}
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_shard(tmp_path / "s.tar", samples())
    assert list(tmp_path.iterdir()) == []
