"""The page "I have ..." for models: every command is run, with a tiny model under the name that the page uses."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import tiny_models
import torch
from model_files import DIM, KERNEL, write_exported, write_hear, write_onnx, write_sentence_transformer, write_traced

from featstore.cli import main
from featstore.store import open_store
from fenced import ROOT
from handmade import XARES_ENCODER, clip, noise, write_split

PAGE = ROOT / "docs/how-to/i-have.md"
SPLITS = [f"wds-audio-fold-{fold}" for fold in range(1, 6)]


def _hear(folder: Path) -> None:
    write_hear(folder, name="my_hear_model")
    torch.save({"weight": torch.rand(DIM, 1, KERNEL)}, folder / "weights.pt")


def _xares(folder: Path) -> None:
    (folder / "my_encoder.py").write_text(XARES_ENCODER)


def _transformers(folder: Path) -> None:
    tiny_models.save("wav2vec2-group", folder / "facebook/wav2vec2-base")


def _function(folder: Path) -> None:
    [code] = re.findall(
        r'^```python title="my_models.py"\n(.*?)^```$', PAGE.read_text(), flags=re.MULTILINE | re.DOTALL
    )
    (folder / "my_models.py").write_text(code)


def _onnx(folder: Path) -> None:
    write_onnx(folder / "model.onnx")


def _torchscript(folder: Path) -> None:
    write_traced(folder / "model.pt")
    write_exported(folder / "model.pt2")


def _st(folder: Path) -> None:
    write_sentence_transformer(folder / "made").rename(folder / "my-audio-model")


DOORS: Mapping[str, tuple[Callable[[Path], None], int]] = {  # what makes the model, and the encoders that are stored
    "an encoder file for X-ARES": (_xares, 1),
    "a transformers or Dasheng model": (_transformers, 5),  # the output, and four hidden states
    "a function that builds a model": (_function, 2),
    "a HEAR model": (_hear, 1),
    "an ONNX file": (_onnx, 1),
    "a TorchScript file": (_torchscript, 2),
    "a sentence-transformers model": (_st, 1),
}


def commands(heading: str) -> list[list[str]]:
    """The commands of a section."""
    page = PAGE.read_text(encoding="utf-8")
    [section] = [each for each in page.split("\n## ... ") if each.startswith(f"{heading}\n")]
    shells = re.findall(r"^```sh\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for text in shells for line in text.replace("\\\n", " ").splitlines()]


@pytest.mark.usefixtures("brief_checks")
@pytest.mark.parametrize("heading", DOORS)
def test_the_commands_of_the_page_work(heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, n_encoders = DOORS[heading]
    make(tmp_path)
    for number, split in enumerate(SPLITS):
        write_split(tmp_path / "data/esc50", split, [clip(f"{split}-0", noise(0.4, seed=number), label=number)])
    found = commands(heading)
    assert found
    for program, *words in found:
        assert program == "featstore"
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert not ended.value.code, words
    stored = {(each.encoder, each.fingerprint) for each in open_store("embeddings.zarr")}
    assert len(stored) == n_encoders
