"""Advice that a long extraction prints at its end, and a short one does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import tiny
from featstore.cli.options import advice
from featstore.encoders import devices
from featstore.records import ExtractRecord
from handmade import XARES_ENCODER, clip, extract, noise, write_split


@pytest.fixture
def short(tmp_path: Path) -> ExtractRecord:
    """Of a real run on this CPU, its bottleneck set."""
    write_split(tmp_path / "data/tiny", "train", [clip("a", noise(0.3))])
    encoder = tmp_path / "my_encoder.py"
    encoder.write_text(XARES_ENCODER)
    (record,) = extract(tiny.task(), tmp_path / "data", tmp_path / "store", encoder=str(encoder))
    return replace(record, bottleneck="encode")


def lasting_a_minute(record: ExtractRecord, **settings: object) -> ExtractRecord:
    return replace(record, seconds={**record.seconds, "encode": 60.0}, settings={**record.settings, **settings})


def test_a_cpu_that_has_bfloat16_is_suggested_it(short: ExtractRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_multiplies_bfloat16", lambda: True)
    long = lasting_a_minute(short)
    [line] = advice(long)
    assert "--precision bfloat16" in line
    assert not list(advice(short))
    assert not list(advice(replace(long, bottleneck="read")))
    assert not list(advice(replace(long, encoder="logmel")))
    assert not list(advice(lasting_a_minute(short, precision="bfloat16")))
    monkeypatch.setattr(devices, "cpu_multiplies_bfloat16", lambda: False)
    assert not list(advice(long))


def test_one_gpu_of_several_is_shown_the_others(short: ExtractRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    long = lasting_a_minute(short, device="cuda")
    assert not list(advice(long))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    [line] = advice(long)
    assert "7 more GPUs" in line
    assert not list(advice(replace(long, seconds=short.seconds)))
    assert not list(advice(replace(long, workers=8)))
    assert not list(advice(lasting_a_minute(short, device="cuda:3")))
