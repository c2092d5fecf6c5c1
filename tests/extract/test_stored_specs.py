"""A store names its encoder, and by that runs nothing and reads nothing: the attacks, through the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featstore.cli import main
from featstore.encoders import load_encoder
from featstore.errors import EncoderError, UsageError
from featstore.extract.single_file import load_encoder_of
from handmade import audio_bytes, noise
from mapped import Stored, write_set
from tiny import recipe

EVIL = """
from pathlib import Path
Path("ran").touch()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with code that leaves a trace when it runs, as a file and as a module."""
    monkeypatch.chdir(tmp_path)
    for name in ("evil.py", "logmel.py", "hf.py"):
        (tmp_path / name).write_text(EVIL)
    (tmp_path / "heard.wav").write_bytes(audio_bytes(noise(0.5)))
    return tmp_path


@pytest.mark.parametrize(
    "spec",
    [
        "logmel#layer=evil.py#layer=0",
        "evil.py",
        "evil.py#layer=0",
        "./evil.py:Evil",
        "evil:Evil",
        "logmel:Evil",
        "logmel.py",
        "logmel#layer=evil.py",
        "hf:evil.py#layer=evil.py",
        "hf#layer=evil.py",
        "logmel\n#layer=evil.py#layer=0",
        "mfcc#layer=0#layer=logmel.py",
    ],
)
def test_a_query_runs_no_code_that_a_store_names(here: Path, spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(here / "s", [Stored("a", np.ones(6)), Stored("b", -np.ones(6))], spec=spec)
    with pytest.raises(SystemExit) as done:
        main(["query", "heard.wav", "--store", "s"])
    assert done.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (here / "ran").exists()


@pytest.mark.parametrize("spec", ["hf:some/model", "hf:./folder", "dasheng:base", "dasheng:./weights.pt"])
def test_a_model_of_a_library_is_loaded_when_the_user_names_it(
    here: Path, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def loads(named: str, **_: Any) -> None:
        asked.append(named)
        raise EncoderError("there is none")

    monkeypatch.setattr("featstore.extract.single_file.load_encoder", loads)
    with pytest.raises(UsageError):
        load_encoder_of(recipe(dim=6), stored_spec=spec, spec=None)
    assert asked == []
    with pytest.raises(EncoderError):
        load_encoder_of(recipe(dim=6), stored_spec=spec, spec=spec)
    assert asked == [spec]


def test_code_that_comes_with_a_model_is_never_asked_for_by_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    def loads(_: str, **options: Any) -> None:
        given.append(options)
        raise EncoderError("there is none")

    monkeypatch.setattr("featstore.extract.single_file.load_encoder", loads)
    stored = recipe(dim=6)
    stored = type(stored)(**{**stored.as_json(), "encoder_identity": {"trust_remote_code": True, "arguments": {}}})
    with pytest.raises(EncoderError):
        load_encoder_of(stored, stored_spec="hf:a/b", spec="hf:a/b")
    assert not given[0].get("trust_remote_code", False)


@pytest.mark.parametrize(
    "identity",
    [
        {"arguments": {"mels": 10**9}},
        {"arguments": {"mels": {"a": 1}}},
        {"arguments": ["mels"]},
        {"arguments": {"__class__": 1}},
        {"layer": "evil.py"},
        {"layer": True},
    ],
)
def test_what_a_store_would_build_a_built_in_with_is_checked(here: Path, identity: dict[str, Any]) -> None:
    write_set(here / "s", [Stored("a", np.ones(6)), Stored("b", -np.ones(6))], spec="logmel", identity=identity)
    with pytest.raises(SystemExit) as done:
        main(["query", "heard.wav", "--store", "s"])
    assert done.value.code == 1


def test_a_built_in_is_still_loaded_by_itself() -> None:
    encoder = load_encoder("logmel", arguments={"mels": 40})
    stored = encoder.recipe(
        padding="0.25", precision="float32", frame_dtype="float16", resampler="soxr-HQ", format_version=1
    )
    try:
        found = load_encoder_of(stored, stored_spec="logmel", spec=None)
    except EncoderError as error:  # another resampler, or another format: it was loaded and compared
        pytest.fail(str(error))
    assert found.facts.dim == 40
