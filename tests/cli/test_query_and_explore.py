"""The commands as a user types them: tables, JSON, pages, and one clear line for what cannot be."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from handmade import Run, environment
from mapped import Stored, write_set


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two splits by one encoder; a key that both have; a key with an escape sequence."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(4)
    for split in ("train", "test"):
        clips = [
            Stored(f"{split}-{at}", rng.standard_normal((1 + at % 2, 6)), {"word": f"w{at % 3}", "by": {"id": at}})
            for at in range(12)
        ]
        clips += [
            Stored("both", rng.standard_normal(6), {"word": "x"}),
            Stored("\x1b[2J", np.ones(6), {"word": "\x1b"}),
        ]
        write_set(tmp_path / "s", clips, split=split)
    return tmp_path / "s"


def one_line(run: Run, *arguments: str | Path, code: int, says: str) -> None:
    outcome = run(*arguments)
    assert (outcome.code, outcome.out) == (code, "")
    [line] = outcome.err.splitlines()
    assert line.startswith("featstore: ")
    assert re.search(says, line), line


def test_a_query_prints_a_table_with_labels_and_says_what_it_asked(run: Run, store: Path) -> None:
    lines = run("query", "train-3", "--store", store, "--k", "3").out.splitlines()
    assert "words/train/train-3" in lines[0]
    assert lines[1].strip() == "word: w0"
    assert lines[2].split() == ["cosine", "clip", "where", "from", "s", "word"]
    assert [line.split()[0] for line in lines[3:6]] == ["1", "2", "3"]
    assert re.search(r"27 clips by mel@\w{8}", lines[6])
    assert run("query", "train-3", "--store", store, "--split", "train", "--k", "1").out.count("words/train") == 1


def test_a_query_as_json_is_one_array(run: Run, store: Path) -> None:
    records = json.loads(run("query", "train-3", "--store", store, "--json", "--field", "by.id", "--field", "word").out)
    assert [record["rank"] for record in records] == list(range(1, 11))
    assert set(records[0]) == {
        "rank", "key", "encoder", "fingerprint", "dataset", "split", "similarity", "distance", "start_seconds",
        "seconds", "labels",
    }  # fmt: skip
    assert all(record["distance"] == pytest.approx(1 - record["similarity"], abs=2e-6) for record in records)
    assert any(
        record["labels"] == {"by.id": int(record["key"].split("-")[1]), "word": record["labels"]["word"]}
        for record in records
    )


def test_keys_and_labels_cannot_drive_a_terminal(run: Run, store: Path) -> None:
    assert "\x1b" not in run("query", "both", "--store", store, "--split", "train", "--k", "99").out


def test_what_cannot_be_asked_is_reported_in_one_line(run: Run, store: Path) -> None:
    one_line(run, "query", "both", "--store", store, code=2, says="words/test/both, words/train/both")
    one_line(run, "query", "trian-3", "--store", store, code=2, says="'trian-3'.*'train-3'")
    one_line(run, "query", "both", "--store", store, "--split", "dev", code=2, says=r" \*/\*/dev")
    one_line(run, "query", "train-3", "--store", store, "--field", "wrod", code=1, says="'wrod'.*: word")
    one_line(run, "query", "x" * 300, "--store", store, code=2, says="'xxx")
    one_line(run, "query", "train-3", "--store", "nowhere", code=2, says="nowhere")
    Path("bark.wav").write_bytes(b"no audio")
    one_line(run, "query", "bark.wav", "--store", store, code=2, says="'mel'")


def test_a_key_is_answered_without_torch_sklearn_faiss_or_zarr(store: Path) -> None:
    program = (
        "import sys; from featstore.cli import main\n"
        f"try: main(['query', 'train-3', '--store', {str(store)!r}])\n"
        "except SystemExit as done: assert done.code == 0\n"
        "print(sorted({'torch', 'sklearn', 'faiss', 'zarr', 'rich', 'soundfile', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_explore_writes_a_page_and_says_how_large_it_is(run: Run, store: Path) -> None:
    outcome = run(
        "explore", "mel/words/train", "--store", store, "--out", "map.html", "--color", "by.id", "--title", "Mine"
    )
    assert re.fullmatch(r"map\.html: 14 clips, \d+\.\d kB\n", outcome.out)
    assert "<title>Mine: featstore map</title>" in Path("map.html").read_text(encoding="utf-8")
    assert run("explore", "mel/words/train", "--store", store).out.startswith("mel-words-train.html: 14 clips")
    assert Path("mel-words-train.html").is_file()


def test_explore_with_two_encoders_writes_one_page(run: Run, store: Path) -> None:
    write_set(store, [Stored(f"train-{at}", np.eye(4)[at % 4] + at, {}) for at in range(5)], encoder="other")
    outcome = run("explore", "mel/words/train", "other", "--store", store)
    assert outcome.out.startswith("mel-other-words-train.html: 5 clips, ")
    one_line(run, "explore", "mel/words/train", "mel", "--store", store, code=2, says="both encoders are mel@")
    one_line(run, "explore", "mel/words/train", "none", "--store", store, code=2, says="none")


def test_what_cannot_be_explored_is_reported_in_one_line(run: Run, store: Path) -> None:
    one_line(run, "explore", "--store", store, "--out", "x.html", code=2, says="feature set")
    page = ("explore", "mel/words/train", "--store", store)
    one_line(run, *page, "--serve", "--out", "x.html", code=2, says="--out .*--serve")
    one_line(run, *page, "--out", "x.html", "--audio", "3", code=2, says="--audio .*--data")
    one_line(run, *page, "--out", "x.html", "--data", "nowhere", code=1, says="nowhere/words")
    one_line(run, *page, "--out", "x.html", "--colour", "wrod", code=1, says="'wrod'")
    one_line(run, *page, "--out", "no/folder/x.html", code=2, says="no/folder")
    assert not Path("x.html").exists()


def test_serve_answers_on_the_loopback_until_it_is_interrupted_and_a_taken_port_is_reported(
    run: Run, store: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "featstore",
        "explore",
        "mel/words/train",
        "--store",
        str(store),
        "--serve",
        "--port",
        "0",
    ]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as serving:
        url = serving.stdout.readline().split()[0]
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert "words/train: featstore map" in answer.read().decode()
        one_line(
            run, "explore", "mel/words/train", "--store", store, "--serve", "--port", url.split(":")[2].strip("/"),
            code=2, says=r"127\.0\.0\.1:\d+: .*--port 0",
        )  # fmt: skip
        serving.send_signal(signal.SIGINT)
        assert (serving.wait(10), len(serving.stderr.read().splitlines())) == (0, 1)
