"""What is served, and that nothing else can be had: raw requests, and a store that names files it must not."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

import featstore
from featstore.errors import ShardError, UnusableClip
from featstore.explore.audio import ClipAudio, embed
from featstore.explore.serve import PageServer
from featstore.extract.tar_reader import read_samples
from featstore.store import FeatureSet
from handmade import clip, extract, noise, write_split, write_tar
from tiny import task


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of nine clips in two shards, its store, and a secret beside them."""
    folder = tmp_path_factory.mktemp("served")
    clips = [clip(f"c{at}", noise(0.3 + at / 10, seed=at, rate=8000), label=f"w{at % 3}", rate=8000) for at in range(9)]
    write_split(folder / "data/tiny", "train", clips, shards=2)
    (folder / "data/secret.txt").write_text("secret")
    extract(task(), folder / "data", folder / "store")
    return folder


@pytest.fixture(scope="module")
def fs(place: Path) -> FeatureSet:
    return featstore.open(str(place / "store")).select()


@pytest.fixture(scope="module")
def server(place: Path, fs: FeatureSet) -> Iterator[PageServer]:
    with PageServer("<p>the page</p>", ClipAudio(fs, place / "data"), port=0) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def raw(server: PageServer, request: str) -> tuple[int, dict[str, str], bytes]:
    """Send bytes as they are; no client mends the path on the way."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as line:
        line.sendall(request.encode("latin-1"))
        line.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: line.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *headers = head.decode("latin-1").split("\r\n")
    return (
        int(status.split()[1]),
        {name.lower(): value for name, value in (each.split(": ", 1) for each in headers)},
        body,
    )


def get(server: PageServer, path: str, *, host: str | None = None, more: str = "", verb: str = "GET"):
    name = f"127.0.0.1:{server.server_port}" if host is None else host
    return raw(server, f"{verb} {path} HTTP/1.1\r\nHost: {name}\r\n{more}Connection: close\r\n\r\n")


def test_the_page_and_every_clip_are_served_as_the_encoder_heard_them(server, fs):
    status, headers, body = get(server, "/")
    assert (status, body, headers["content-type"]) == (200, b"<p>the page</p>", "text/html; charset=utf-8")
    assert headers["cross-origin-resource-policy"] == "same-origin"
    for number, key in enumerate(fs.clip_key):
        status, headers, body = get(server, f"/audio/{number}")
        assert (status, headers["content-type"], headers["x-content-type-options"]) == (200, "audio/flac", "nosniff")
        heard, rate = soundfile.read(io.BytesIO(body), dtype="float32")
        at = int(key[1:])
        assert (rate, len(heard)) == (16_000, round((0.3 + at / 10) * 16_000))
        spectrum = np.abs(np.fft.rfft(heard))
        assert abs(spectrum.argmax() * 16_000 / len(heard) - (200 + 60 * at)) < 5


@pytest.mark.parametrize(
    "path",
    [
        "/audio/9", "/audio/-1", "/audio/01", "/audio/1/", "/audio/1.5", "/audio/", "/audio/99999999999999999999",
        "/audio/../secret.txt", "/audio/..%2f..%2fsecret.txt", "/../secret.txt", "//secret.txt", "/secret.txt",
        "/audio/train-000.tar", "/audio/c1", "/audio/%31", "/audio/\xb2", "/audio/1\x00", "/audio/1?x", "/?",
        "/index.html",
        "/audio//1", "/./", "/favicon.ico", "http://127.0.0.1/", "file:///etc/passwd", "*",
    ],
)  # fmt: skip
def test_no_other_path_is_there(server, path):
    status, _, body = get(server, path)
    assert (status, b"secret" in body) == (404, False)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1.evil.example", "localhost", "", "[::1]", "0.0.0.0"],
)
def test_a_request_that_names_another_host_is_refused(server, host):
    for path in ("/", "/audio/0"):
        assert get(server, path, host=host)[0] == 403
    assert get(server, "/", host=f"localhost:{server.server_port}")[0] == 200


def test_no_host_two_hosts_and_other_verbs_are_refused(server):
    name = f"127.0.0.1:{server.server_port}"
    assert raw(server, "GET / HTTP/1.1\r\n\r\n")[0] == 403
    assert raw(server, f"GET / HTTP/1.1\r\nHost: {name}\r\nHost: evil\r\nConnection: close\r\n\r\n")[0] == 403
    assert get(server, "/", verb="POST")[0] == 501
    assert get(server, "/", verb="HEAD")[::2] == (200, b"")


def test_it_listens_on_the_loopback_alone(server):
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("asked", "status", "piece"),
    [
        ("bytes=0-", 206, slice(0, None)),
        ("bytes=10-19", 206, slice(10, 20)),
        ("bytes=-5", 206, slice(-5, None)),
        ("bytes=10-99999999", 206, slice(10, None)),
        ("bytes=99999999-", 416, slice(0, 0)),
        ("bytes=5-4", 416, slice(0, 0)),
        ("bytes=0-1,4-5", 200, slice(None)),
        ("lines=1-2", 200, slice(None)),
    ],
)
def test_a_piece_of_a_sound_can_be_had(server, asked, status, piece):
    whole = get(server, "/audio/2")[2]
    got, headers, body = get(server, "/audio/2", more=f"Range: {asked}\r\n")
    assert (got, body) == (status, whole[piece])
    if status == 206:
        first, last = headers["content-range"].removeprefix("bytes ").split("/")[0].split("-")
        assert whole[int(first) : int(last) + 1] == body


@pytest.mark.parametrize(
    "name", ["../secret.txt", "/etc/passwd", "a/../../secret.txt", "..", ".", "", "a\\..\\b.tar", "c:x.tar"]
)
def test_a_store_cannot_name_a_file_outside_of_the_datasets_folder(place, fs, name):
    audio = ClipAudio(fs, place / "data")
    audio._shards = [replace(shard, name=name, size=6) for shard in audio._shards]
    with pytest.raises(ShardError, match="not below"):
        audio.flac(0)


def test_a_shard_that_has_gone_or_changed_gives_no_sound_and_the_others_do(tmp_path, fs, place):
    (tmp_path / "data/tiny").mkdir(parents=True)
    first, second = sorted((place / "data/tiny").iterdir())
    (tmp_path / "data/tiny" / second.name).write_bytes(second.read_bytes())
    audio = ClipAudio(fs, tmp_path / "data")
    with PageServer("", audio, port=0) as server:
        assert server.sound(0) is None
        assert server.sound(8) is not None
        assert server.sound(9) is None
    assert set(audio.excerpts(range(9))) == {5, 6, 7, 8}
    (tmp_path / "data/tiny" / first.name).write_bytes(first.read_bytes() + bytes(512))
    with pytest.raises(ShardError, match=r"train-000\.tar"):
        audio.flac(0)
    with pytest.raises(ShardError, match="--data"):
        ClipAudio(fs, tmp_path)


def test_a_clip_that_its_shard_does_not_have_is_reported(place, fs):
    audio = ClipAudio(fs, place / "data")
    audio._keys = ["other"] * len(audio._keys)
    with pytest.raises(UnusableClip, match="'other'"):
        audio.flac(0)


def test_sounds_of_a_page_are_of_all_classes_in_turn_and_within_bounds(place, fs, monkeypatch):
    audio = ClipAudio(fs, place / "data")
    groups = [0] * 7 + [1, 2]
    found = embed(audio, np.arange(9), groups, most=4)
    assert found.wanted == len(found.uris) == 4
    assert {7, 8} <= set(found.uris)
    assert all(uri.startswith("data:audio/ogg;base64,") for uri in found.uris.values())
    least = min(map(len, embed(audio, np.arange(9), groups, most=9).uris.values()))
    monkeypatch.setattr("featstore.explore.audio.MAX_EMBEDDED_BYTES", 2 * least)
    small = embed(audio, np.arange(9), groups, most=9)
    assert sum(map(len, small.uris.values())) <= 2 * least


def test_of_the_clips_that_are_not_wanted_nothing_is_read(tmp_path):
    clips = [clip(f"c{at}", noise(0.3, seed=at), label=at) for at in range(5)]
    path = write_tar(tmp_path / "a.tar", [member for members in clips for member in members])
    whole = {sample.key: sample for sample in read_samples(path)}
    some = list(read_samples(path, only=["c3", "c1", "unknown"]))
    assert [sample.key for sample in some] == ["c1", "c3"]
    assert all(sample == whole[sample.key] for sample in some)
