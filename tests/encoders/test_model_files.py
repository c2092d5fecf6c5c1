"""``onnx:`` and ``torchscript:``: a graph in a file gives what NumPy computes, or one line about what it lacks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from model_files import (
    DECLARED,
    DIM,
    Counting,
    Declaring,
    convolved,
    weight,
    write_exported,
    write_onnx,
    write_scripted,
    write_traced,
)

from featstore.encoders import load_encoder
from featstore.encoders.adapters.onnx import external_files
from featstore.encoders.encoder import Encoder
from featstore.errors import EncoderContractError, EncoderError
from featstore.records import Recipe
from featstore.store import open_store
from featstore.tasks import load_manifest
from handmade import clip, extract, noise, task_toml, write_split

Write = Callable[..., Path]
WRITERS: Mapping[str, tuple[str, Write]] = {
    "onnx": ("onnx:", write_onnx),
    "traced": ("torchscript:", write_traced),
    "exported": ("torchscript:", write_exported),
}
SETTINGS: dict[str, Any] = {
    "padding": "0.25", "precision": "float32", "frame_dtype": "float16", "resampler": "soxr-HQ", "format_version": 1
}  # fmt: skip


def audio(rows: int = 3, samples: int = 8000) -> np.ndarray:
    return np.stack([noise(samples / 16_000, seed=seed) for seed in range(rows)])


def frames_of(encoder: Encoder, waves: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        [output] = encoder.forward(torch.from_numpy(waves), None)
    return output.frames.numpy()


def fingerprint(spec: str, arguments: Mapping[str, Any] = DECLARED) -> str:
    recipe: Recipe = load_encoder(spec, arguments=arguments).recipe(**SETTINGS)
    return recipe.fingerprint


def why(spec: str, arguments: Mapping[str, Any] = DECLARED) -> str:
    with pytest.raises(EncoderError) as caught:
        load_encoder(spec, arguments=arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.mark.parametrize("kind", WRITERS)
def test_frames_are_those_of_numpy(kind: str, tmp_path: Path) -> None:
    scheme, write = WRITERS[kind]
    encoder = load_encoder(f"{scheme}{write(tmp_path / 'my model.bin')}", arguments=DECLARED)
    assert (encoder.name, encoder.named_by) == ("my-model", "place")
    facts = encoder.facts
    assert (facts.sample_rate_hz, facts.dim, facts.hop_seconds, facts.input_seconds) == (16_000, DIM, 0.01, None)
    for waves in (audio(), audio(1, 16_001)):
        np.testing.assert_allclose(frames_of(encoder, waves), convolved(waves, weight()), atol=1e-5)


@pytest.mark.parametrize(
    "shape",
    [("b", "n"), ("b", 1, "n"), ("b", "n", 1), (1, "n"), (2, 1, "n"), (1, 8000, 1), ("b", 8000), (2, 8000)],
    ids=str,
)
def test_a_waveform_of_any_axes_and_fixed_sizes_gives_the_same_frames(shape: tuple[Any, ...], tmp_path: Path) -> None:
    encoder = load_encoder(f"onnx:{write_onnx(tmp_path / 'm.onnx', shape=shape)}", arguments=DECLARED)
    assert encoder.facts.input_seconds == (0.5 if 8000 in shape else None)
    np.testing.assert_allclose(frames_of(encoder, audio()), convolved(audio(), weight()), atol=1e-5)


@pytest.mark.parametrize(("batch", "samples"), [(1, None), (2, 8000), (None, 8000)])
def test_an_exported_program_of_fixed_sizes_gives_the_same_frames(
    batch: int | None, samples: int | None, tmp_path: Path
) -> None:
    path = write_exported(tmp_path / "m.pt2", batch=batch, samples=samples)
    encoder = load_encoder(f"torchscript:{path}", arguments=DECLARED)
    assert encoder.facts.input_seconds == (None if samples is None else 0.5)
    np.testing.assert_allclose(frames_of(encoder, audio()), convolved(audio(), weight()), atol=1e-5)


def test_clips_are_cut_into_windows_of_a_fixed_input_and_padding_is_trimmed(tmp_path: Path) -> None:
    seconds = {"short": 0.3, "long": 2.5}
    write_split(tmp_path / "data/tiny", "train", [clip(key, noise(length, seed=7)) for key, length in seconds.items()])
    task = load_manifest(task_toml(tmp_path))
    path = write_onnx(tmp_path / "second.onnx", shape=("batch", 16_384))
    encoder = load_encoder(f"onnx:{path}", arguments=DECLARED)
    extract(task, tmp_path / "data", tmp_path / "store", encoder=encoder, frames="always", frame_dtype="float32")
    stored = open_store(str(tmp_path / "store")).select(encoder="second")
    first, second, third = np.split(noise(2.5, seed=7), [13_333, 26_666])
    windows = {"short": noise(0.3, seed=7), "long": first, "long#2": second, "long#3": third}
    assert sorted(stored.key) == sorted(windows)
    for key, wave in windows.items():
        padded = np.zeros((1, 16_384), np.float32)
        padded[0, : len(wave)] = wave
        expected = convolved(padded, weight())[0][: round(len(wave) / 160)]
        np.testing.assert_allclose(stored.frames[key], expected, atol=1e-5)
        np.testing.assert_allclose(stored.utterance[list(stored.key).index(key)], expected.mean(axis=0), atol=1e-5)


def test_an_argument_fixes_the_length_of_a_traced_model(tmp_path: Path) -> None:
    arguments = {**DECLARED, "input_seconds": 0.25}
    encoder = load_encoder(f"torchscript:{write_traced(tmp_path / 'm.pt')}", arguments=arguments)
    assert encoder.facts.input_seconds == 0.25
    short = audio(2, 1600)
    padded = np.pad(short, ((0, 0), (0, 2400)))
    np.testing.assert_allclose(frames_of(encoder, short), convolved(padded, weight()), atol=1e-5)


def test_a_vector_is_the_utterance_vector_and_the_only_frame(tmp_path: Path) -> None:
    spec = f"onnx:{write_onnx(tmp_path / 'm.onnx', pooled=True)}"
    encoder = load_encoder(spec, arguments={"sampling_rate": 16_000})
    [output] = encoder.forward(torch.from_numpy(audio()), None)
    assert output.utterance is not None
    np.testing.assert_allclose(output.utterance.numpy(), convolved(audio(), weight()).mean(axis=1), atol=1e-5)
    assert torch.equal(output.frames[:, 0], output.utterance)
    with pytest.raises(EncoderError):
        load_encoder(spec, arguments={"sampling_rate": 16_000}, pools=["max"])


def test_metadata_declares_and_arguments_override_it(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", metadata={"sample_rate": "8000", "hop_size_in_ms": "20"})
    facts = load_encoder(f"onnx:{path}").facts
    assert (facts.sample_rate_hz, facts.hop_seconds) == (8000, 0.02)
    assert load_encoder(f"onnx:{path}", arguments={"sampling_rate": 16_000}).facts.sample_rate_hz == 16_000


def test_one_of_several_outputs_is_chosen_by_name(tmp_path: Path) -> None:
    spec = f"onnx:{write_onnx(tmp_path / 'm.onnx', outputs=('frames', 'twice'))}"
    encoder = load_encoder(spec, arguments={**DECLARED, "output": "twice"})
    np.testing.assert_allclose(frames_of(encoder, audio()), 2 * convolved(audio(), weight()), atol=1e-5)
    assert "twice" in why(spec)
    assert "frames" in why(spec, {**DECLARED, "output": "thrice"})
    assert fingerprint(spec, {**DECLARED, "output": "twice"}) != fingerprint(spec, {**DECLARED, "output": "frames"})


def test_a_scripted_module_declares_by_its_attributes(tmp_path: Path) -> None:
    write_scripted(tmp_path / "m.pt", Declaring())
    encoder = load_encoder(f"torchscript:{tmp_path / 'm.pt'}")
    assert (encoder.facts.sample_rate_hz, encoder.facts.hop_seconds) == (16_000, 0.01)
    np.testing.assert_allclose(frames_of(encoder, audio()), convolved(audio(), weight()), atol=1e-5)


def test_a_scripted_module_gets_lengths_and_returns_what_the_contract_allows(tmp_path: Path) -> None:
    write_scripted(tmp_path / "m.pt", Counting())
    encoder = load_encoder(f"torchscript:{tmp_path / 'm.pt'}")
    assert encoder.facts.takes_lengths
    [output] = encoder.forward(torch.rand(2, 1000), torch.tensor([1000, 500]))
    assert output.n_frames is not None
    assert output.n_frames.tolist() == [50, 25]
    assert output.utterance is not None
    assert torch.equal(output.utterance, output.frames.amax(1))


@pytest.mark.parametrize("kind", WRITERS)
def test_the_fingerprint_follows_the_content_of_the_file(kind: str, tmp_path: Path) -> None:
    scheme, write = WRITERS[kind]
    path = write(tmp_path / "m.bin")
    before = fingerprint(f"{scheme}{path}")
    moved = path.rename(tmp_path / "renamed.bin")
    assert fingerprint(f"{scheme}{moved}") == before
    assert fingerprint(f"{scheme}{moved}", {**DECLARED, "hop_size_in_ms": 11}) != before
    assert fingerprint(f"{scheme}{write(tmp_path / 'm.bin', seed=1)}") != before


def test_weights_beside_an_onnx_file_are_part_of_its_fingerprint(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", external="m.weights")
    expected = {
        entry.value
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert {found.name for found in external_files(path)} == expected == {"m.weights"}
    before = fingerprint(f"onnx:{path}")
    np.testing.assert_allclose(
        frames_of(load_encoder(f"onnx:{path}", arguments=DECLARED), audio()), convolved(audio(), weight()), atol=1e-5
    )
    content = (tmp_path / "m.weights").read_bytes()
    (tmp_path / "m.weights").write_bytes(bytes(len(content)))
    assert fingerprint(f"onnx:{path}") != before


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("missing", DECLARED)
def test_a_missing_argument_is_named(kind: str, missing: str, tmp_path: Path) -> None:
    scheme, write = WRITERS[kind]
    spec = f"{scheme}{write(tmp_path / 'm.bin')}"
    given = {name: value for name, value in DECLARED.items() if name != missing}
    assert f"--encoder-arg {missing}=" in why(spec, given)
    for value in (0, "fast", -1, True):
        assert f"{missing}=" in why(spec, {**given, missing: value})
    assert "speed" in why(spec, {**DECLARED, "speed": 2})


@pytest.mark.parametrize("scheme", ["onnx:", "torchscript:"])
def test_what_is_no_model_is_one_line(scheme: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a model")
    (tmp_path / "empty").touch()
    torch.save({"a": torch.ones(1)}, tmp_path / "weights.pt")
    for name in ("text", "empty", "weights.pt", "missing", "."):
        why(f"{scheme}{tmp_path / name}")
    why(scheme)
    why("torchscript:" + str(write_onnx(tmp_path / "m.onnx")))
    why("onnx:" + str(write_traced(tmp_path / "m.pt")))


def test_a_graph_that_takes_no_waveform_is_one_line(tmp_path: Path) -> None:
    assert "(b, 40, n)" in why(f"onnx:{write_onnx(tmp_path / 'mels.onnx', shape=('b', 40, 'n'))}").replace("'", "")
    assert "input_seconds" in why(
        f"onnx:{write_onnx(tmp_path / 'm.onnx', shape=('b', 8000))}", {**DECLARED, "input_seconds": 1}
    )
    tokens = helper_graph(tmp_path / "tokens.onnx")
    assert "int64" in why(f"onnx:{tokens}")


def helper_graph(path: Path) -> Path:
    """A graph that takes token numbers."""
    node = onnx.helper.make_node("Cast", ["tokens"], ["frames"], to=onnx.TensorProto.FLOAT)
    graph = onnx.helper.make_graph(
        [node],
        "tokens",
        [onnx.helper.make_tensor_value_info("tokens", onnx.TensorProto.INT64, ("b", "n"))],
        [onnx.helper.make_tensor_value_info("frames", onnx.TensorProto.FLOAT, ("b", "n"))],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.save_model(model, path)
    return path


def test_an_output_that_is_neither_frames_nor_vectors_breaks_the_contract(tmp_path: Path) -> None:
    class Flat(torch.nn.Module):
        def forward(self, audio: torch.Tensor) -> torch.Tensor:
            return audio.mean(1)

    write_traced(tmp_path / "m.pt", Flat())
    with pytest.raises(EncoderContractError):
        load_encoder(f"torchscript:{tmp_path / 'm.pt'}", arguments=DECLARED)


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (Path("ran"),))


def test_an_exported_program_runs_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_exported(tmp_path / "m.pt2")
    torch.save(Evil(), tmp_path / "evil.pt")
    with_evil = tmp_path / "evil.pt2"
    replace_member(path, with_evil, ending="sample_inputs/model.pt", content=(tmp_path / "evil.pt").read_bytes())
    load_encoder(f"torchscript:{path}", arguments=DECLARED)
    why(f"torchscript:{with_evil}")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)  # as torch.export.load does by itself
    assert (tmp_path / "ran").exists()


def replace_member(source: Path, target: Path, *, ending: str, content: bytes) -> None:
    import zipfile

    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for info in old.infolist():
            new.writestr(info.filename, content if info.filename.endswith(ending) else old.read(info))


def test_onnxruntime_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_onnx(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "featstore[onnx]" in why(f"onnx:{path}")
