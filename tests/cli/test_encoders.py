"""Models of transformers on the command line: layers and pools of one pass, and what is printed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from tiny_models import save

from handmade import Run
from mapped import Stored, write_set


def test_layers_and_pools_of_one_extraction_are_probed_by_name(run: Run, folder: Path) -> None:
    save("wav2vec2-layer", folder / "models/wav2vec2-tiny")
    done = run(
        "extract", "tiny.toml", "--encoder", "hf:models/wav2vec2-tiny", "--layers", "2,last", "--pool", "mean,std",
        "--data", "data", "--store", "store",
    )  # fmt: skip
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["tiny/train", "tiny/valid", "tiny/test"]
    assert max(map(len, lines)) <= 80
    listed = json.loads(run("inspect", "--store", "store", "--split", "test", "--json").out)
    names = [f"wav2vec2-tiny{layer}{pool}" for layer in ("", ".layer2") for pool in ("", ".std")]
    assert sorted(record["encoder"] for record in listed) == sorted(names)
    scored = run("probe", "tiny.toml", "--store", "store", "--encoder", "wav2vec2-tiny.layer2.std", "--json")
    assert [record["encoder"] for record in json.loads(scored.out)] == ["wav2vec2-tiny.layer2.std"]


def test_the_command_line_says_under_which_name_the_store_has_it(run: Run, folder: Path) -> None:
    save("wav2vec2-group", folder / "first")
    common = ("--data", "data", "--store", "store", "--split", "train", "--split", "test", "--layers", "1,last")
    assert run("extract", "tiny.toml", "--encoder", "hf:first", *common).code == 0
    (folder / "first").rename(folder / "second")
    done = run("extract", "tiny.toml", "--encoder", "hf:second", *common)
    assert done.code == 0, done.err
    assert done.out.count("2 shards reused") == 2
    assert re.search(r"first\.layer1@\w{8}, first@\w{8}$", done.out.splitlines()[-1])


def test_the_table_counts_layers_as_people_do(run: Run, tmp_path: Path) -> None:
    for name in ("a.layer10", "a.layer2.std", "a", "a.layer2", "b1"):
        write_set(tmp_path / "s", [Stored("k", np.ones(4), {})], encoder=name)
    listed = json.loads(run("inspect", "--store", tmp_path / "s", "--json").out)
    assert [record["encoder"] for record in listed] == ["a", "a.layer2", "a.layer2.std", "a.layer10", "b1"]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--layers", "1,x"], "3,6,9,last"),
        (["--layers", "1,1"], "'1,1'"),
        (["--layers", "1"], "logmel"),
        (["--pool", "median"], "mean, max, std"),
        (["--pool", "max,"], "'max,'"),
        (["--pool", "max", "--frames", "always"], "--pool"),
        (["--max-window-seconds", "0"], "x>=0.1"),
        (["--encoder", "hf:./nowhere"], "nowhere"),
        (["--encoder", "dasheng:huge"], "base, 0.6b, 1.2b"),
    ],
)
def test_what_makes_no_sense_is_one_line(options: list[str], part: str, run: Run, folder: Path) -> None:
    done = run("extract", "tiny.toml", "--encoder", "logmel", "--data", "data", "--store", "store", *options)
    assert done.code in (1, 2)
    assert part in done.error_lines[-1]
    assert len(done.error_lines) == 1
