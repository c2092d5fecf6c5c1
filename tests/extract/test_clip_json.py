"""A clip's JSON that later commands could not read, print or export is refused by `extract`, with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import featstore
from featstore.cli import main
from featstore.clip_json import MAX_NESTED, parse_clip_json
from handmade import audio_bytes, clip, extract, noise, task_toml, write_tar
from tiny import task

UNUSABLE = {
    "nan": b'{"label": NaN}',
    "infinite": b'{"label": "a", "n": [-Infinity]}',
    "overflow": b'{"label": 1e999}',
    "half": b'{"label": "\\ud800"}',
    "half-key": b'{"\\uDFFF": 1}',
    "two-halves-turned": b'{"label": "\\ude00\\ud83d"}',
    "deep": b'{"label": ' + b"[" * MAX_NESTED + b"]" * MAX_NESTED + b"}",
    "near-the-limit": b"[" * 900 + b"]" * 900,
    "deepest": b"[" * 100_000 + b"]" * 100_000,
    "long-number": b'{"label": ' + b"9" * 5000 + b"}",
    "beyond-float": b'{"label": ' + b"9" * 310 + b"}",
}
USABLE = {
    "pair": b'{"label": "\\ud83d\\ude00"}',
    "nested": b'{"label": "a", "n": ' + b"[" * (MAX_NESTED - 1) + b"]" * (MAX_NESTED - 1) + b"}",
    "brackets": json.dumps({"label": "[{" * 100}).encode(),
    "wide": json.dumps({"label": "a", "events": [[number] for number in range(200)]}).encode(),
    "twice": b'{"label": "a", "label": "b"}',
    "large": b'{"label": ' + b"9" * 300 + b"}",
    "backslash": b'{"label": "C:\\\\ud800"}',
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_clip_json(UNUSABLE[name].decode())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", USABLE)
def test_what_is_read_is_what_json_reads(name: str) -> None:
    assert parse_clip_json(USABLE[name].decode()) == json.loads(USABLE[name])


def members() -> list[tuple[str, bytes]]:
    audio = audio_bytes(noise(0.1))
    return [
        member
        for name, meta in {**UNUSABLE, **USABLE}.items()
        for member in ((f"{name}.wav", audio), (f"{name}.json", meta))
    ]


def test_such_clips_are_skipped_and_listed_and_the_others_stored_as_they_are(tmp_path: Path) -> None:
    write_tar(tmp_path / "data/tiny/train-0.tar", members())
    [record] = extract(task(), tmp_path / "data", tmp_path / "store")
    assert {skipped.key for skipped in record.skipped} == UNUSABLE.keys()
    fs = featstore.open(str(tmp_path / "store")).select()
    assert dict(zip(fs.key, fs.meta_json, strict=True)) == {name: meta.decode() for name, meta in USABLE.items()}


def test_what_was_stored_can_be_queried_and_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "valid", "test"):
        write_tar(tmp_path / f"data/tiny/{split}-0.tar", [*members(), *clip(f"{split}-more", noise(0.2))])
    task_toml(tmp_path)
    extract(task(), tmp_path / "data", tmp_path / "store", splits=())
    monkeypatch.chdir(tmp_path)
    for command in (
        ("query", "train/pair", "--store", "store", "--json"),
        ("export", "out.npz", "--store", "store", "--split", "train", "--format", "npz"),
        ("inspect", "--store", "store", "--json"),
    ):
        with pytest.raises(SystemExit) as done:
            main(list(command))
        assert not done.value.code
