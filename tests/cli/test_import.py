"""`featstore import`: embeddings made elsewhere go all the way, and what needs their encoder is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from featstore.tasks import load_manifest
from handmade import Run, audio_bytes, noise

COUNTS = {"train": 60, "valid": 20, "test": 40}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One array of three classes, and a table of its rows."""
    rng = np.random.default_rng(0)
    lines, classes = ["id,label,split"], []
    for split, n in COUNTS.items():
        for at in range(n):
            classes.append(at % 3)
            lines.append(f"{split}-{at},{'abc'[at % 3]},{split}")
    X = np.eye(8)[classes] + 0.3 * rng.standard_normal((len(classes), 8))
    np.save(tmp_path / "X.npy", X.astype(np.float32))
    (tmp_path / "clips.csv").write_text("\n".join(lines))
    (tmp_path / "bark.wav").write_bytes(audio_bytes(noise(0.5)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


IMPORT = ("import", "X.npy", "--table", "clips.csv", "--key", "id", "--encoder", "mine", "--dataset", "words")
SPLITS = ("--split-column", "split", "--store", "s")


@pytest.mark.usefixtures("folder")
def test_imported_embeddings_go_all_the_way(run: Run) -> None:
    done = run(*IMPORT, *SPLITS, "--source", "BEATs, layer 9", "--manifest", "words.toml")
    assert done.code == 0, done.err
    assert "featstore probe words.toml --encoder mine --store s" in done.out
    manifest = load_manifest(Path("words.toml"))
    assert (manifest.kind, manifest.data.dataset, manifest.patterns["valid"]) == ("clip", "words", "valid-*.tar")
    before = Path("words.toml").read_bytes()
    again = run(*IMPORT, *SPLITS, "--source", "BEATs, layer 9", "--manifest", "words.toml", "--json")
    assert [record["parts_written"] for record in json.loads(again.out)] == [0, 0, 0]
    assert Path("words.toml").read_bytes() == before
    for command in (
        ("inspect", "s"),
        ("inspect", "s", "--health"),
        ("probe", "words.toml", "--store", "s", "--results", "r"),
        ("retrieve", "words.toml", "--store", "s", "--results", "r"),
        ("report", "r", "--format", "html", "--out", "r.html"),
        ("query", "train-3", "--store", "s"),
        ("explore", "mine/words/test", "--store", "s", "--out", "map.html"),
        ("export", "test.npz", "--store", "s", "--split", "test", "--format", "npz", "--label", "label"),
        ("copy", "s", "t"),
        ("compact", "--store", "t"),
        ("verify", "--store", "t"),
        ("gc", "--store", "t"),
    ):
        done = run(*command)
        assert done.code == 0, (command, done.err)
    scores = [json.loads(path.read_text()) for path in Path("r").rglob("*.json")]
    assert len(scores) == 2
    shown = run("inspect", "s", "mine/words/train").out
    assert "BEATs, layer 9" in shown
    assert "sample rate" not in shown


@pytest.mark.usefixtures("folder")
def test_two_encoders_of_which_one_is_imported_are_compared(run: Run) -> None:
    run(*IMPORT, *SPLITS, "--manifest", "words.toml")
    X = np.load("X.npy")
    np.save("Y.npy", X + 2 * np.random.default_rng(1).standard_normal(X.shape).astype(np.float32))
    run("import", "Y.npy", "--table", "clips.csv", "--key", "id", "--encoder", "worse", "--dataset", "words", *SPLITS)
    assert run("probe", "words.toml", "--store", "s", "--results", "r").code == 0
    compared = run("report", "r", "--compare", "mine", "worse")
    assert compared.code == 0, compared.err
    assert "words" in compared.out


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "command",
    [
        ("query", "bark.wav", "--store", "s"),
        ("query", "bark.wav", "--store", "s", "--spec", "logmel"),
        ("explore", "mine/words/test", "--store", "s", "--data", ".", "--out", "map.html"),
        ("extract", "words.toml", "--encoder", "mine", "--data", ".", "--store", "s"),
    ],
    ids=" ".join,
)
def test_what_needs_the_encoder_is_refused_in_one_line(command: tuple[str, ...], run: Run) -> None:
    run(*IMPORT, *SPLITS, "--manifest", "words.toml")
    done = run(*command)
    assert done.code in (1, 2)
    assert done.err.count("\n") == 1
    assert "imported" in done.err


@pytest.mark.usefixtures("folder")
def test_of_several_files_a_bad_one_is_named_and_the_exit_code_is_1(run: Run) -> None:
    np.savez("good.npz", X=np.load("X.npy"), label=["a", "b"] * 60)
    np.savez("bad.npz", X=np.load("X.npy").astype(int))
    done = run("import", "good.npz", "bad.npz", "--encoder", "mine", "--dataset", "words", "--store", "s")
    assert done.code == 1
    assert "bad.npz" in done.err
    assert run("verify", "--store", "s").code == 0
    assert len(json.loads(run("inspect", "s", "--json").out)) == 1


@pytest.mark.usefixtures("folder")
def test_skipped_rows_are_listed_and_fail_if_asked(run: Run) -> None:
    X = np.load("X.npy")
    X[7] = np.nan
    np.save("X.npy", X)
    done = run(*IMPORT, *SPLITS)
    assert done.code == 0
    assert "train-7" in done.out
    assert run(*IMPORT, *SPLITS, "--fail-on-skip").code == 1
    assert "train-7" in run("inspect", "s", "mine/words/train").out


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "options",
    [
        ("--store", "s", "--split", "a b"),
        ("--store", "s", "--columns", "id,,label"),
        ("--store", "s", "--columns", "nope"),
        ("--store", "s", "--task", "nope"),
        ("--store", "s", "--task", "esc50"),
        ("--store", "s", "--hop", "0"),
        ("--store", "s", "--task", "esc50", "--manifest", "x.toml"),
        ("--store", "s", "--frames", "x"),
    ],
    ids=" ".join,
)
def test_a_wrong_call_is_one_line_and_exit_code_2(options: tuple[str, ...], run: Run) -> None:
    done = run(*IMPORT, *options)
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert not Path("s").exists()


@pytest.mark.usefixtures("folder")
def test_help_fits_80_columns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, run("import", "--help").out.splitlines())) <= 80
