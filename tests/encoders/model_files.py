"""Tiny models as people have them: an ONNX file, TorchScript, a HEAR module, a sentence-transformers folder.

All but the last are one convolution, of which `convolved` is the reference in NumPy.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

KERNEL, STRIDE, DIM = 400, 160, 6
DECLARED: Mapping[str, Any] = {"sampling_rate": 16_000, "hop_size_in_ms": 10}


def weight(seed: int = 0) -> np.ndarray:
    """float32 (DIM, 400)"""
    return np.random.default_rng(seed).standard_normal((DIM, KERNEL)).astype(np.float32) / 20


def convolved(audio: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float64 (batch, samples) -> (batch, frames, DIM)"""
    windows = np.lib.stride_tricks.sliding_window_view(audio.astype(np.float64), KERNEL, axis=1)[:, ::STRIDE]
    return windows @ weights.T.astype(np.float64)


def write_onnx(
    path: Path,
    *,
    shape: tuple[Any, ...] = ("batch", "samples"),
    seed: int = 0,
    pooled: bool = False,
    outputs: tuple[str, ...] = ("frames",),
    metadata: Mapping[str, str] | None = None,
    external: str = "",
    kind: int = onnx.TensorProto.FLOAT,
) -> Path:
    """Write the convolution of a waveform of this shape; a second output is twice the first."""
    nodes = []
    if len(shape) == 2:
        nodes.append(helper.make_node("Unsqueeze", ["audio", "one"], ["channels"]))
    elif shape[2] == 1:
        nodes.append(helper.make_node("Transpose", ["audio"], ["channels"], perm=[0, 2, 1]))
    else:
        nodes.append(helper.make_node("Identity", ["audio"], ["channels"]))
    nodes += [
        helper.make_node("Conv", ["channels", "weight"], ["convolved"], strides=[STRIDE]),
        helper.make_node("Transpose", ["convolved"], ["raw"], perm=[0, 2, 1]),
        helper.make_node("ReduceMean", ["raw", "one"], ["first"], keepdims=0)
        if pooled
        else helper.make_node("Identity", ["raw"], ["first"]),
        helper.make_node("Identity", ["first"], [outputs[0]]),
        *(helper.make_node("Add", ["first", "first"], [name]) for name in outputs[1:]),
    ]
    out = (None, DIM) if pooled else (None, None, DIM)
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("audio", kind, shape)],
        [helper.make_tensor_value_info(name, kind, out) for name in outputs],
        [
            numpy_helper.from_array(weight(seed)[:, None], "weight"),
            numpy_helper.from_array(np.array([1], np.int64), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, dict(metadata or {}))
    onnx.save_model(model, path, save_as_external_data=bool(external), location=external or None, size_threshold=100)
    return path


class Convolution(torch.nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.from_numpy(weight(seed)[:, None]))

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        return torch.conv1d(audio[:, None], self.weight, stride=160).transpose(1, 2)


def write_traced(path: Path, module: torch.nn.Module | None = None, *, seed: int = 0) -> Path:
    with torch.no_grad(), deprecated_jit():
        torch.jit.trace((module or Convolution(seed)).eval(), torch.zeros(2, 1600)).save(str(path))
    return path


def write_scripted(path: Path, module: torch.nn.Module) -> Path:
    with deprecated_jit():
        torch.jit.script(module.eval()).save(str(path))
    return path


@contextmanager
def deprecated_jit() -> Iterator[None]:
    """TorchScript is deprecated in torch, which warns; users still have such files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


class Declaring(Convolution):
    """With the attributes of the contract, which scripting keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.sampling_rate, self.hop_size_in_ms = 16_000, 10.0


class Counting(torch.nn.Module):
    """Takes lengths, and returns frames, utterance vectors and counts of frames."""

    def __init__(self) -> None:
        super().__init__()
        self.sampling_rate, self.hop_size_in_ms = 1000, 20.0

    def forward(
        self, audio: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if lengths is None:
            lengths = torch.full((audio.shape[0],), audio.shape[1])
        frames = audio[:, : audio.shape[1] // 20 * 20].unflatten(1, [-1, 20])
        n_frames = (lengths // 20).clamp(min=1)
        return frames, frames.amax(1), n_frames


def write_exported(path: Path, *, seed: int = 0, batch: int | None = None, samples: int | None = None) -> Path:
    dim = torch.export.Dim
    dynamic = {0: dim("batch") if batch is None else None, 1: dim("samples", min=800) if samples is None else None}
    example = torch.zeros(batch or 2, samples or 16_000)
    program = torch.export.export(Convolution(seed).eval(), (example,), dynamic_shapes={"audio": dynamic})
    torch.export.save(program, path)
    return path


HEAR = f"""
import torch

import hear_helper


class Model(torch.nn.Module):
    sample_rate, scene_embedding_size, timestamp_embedding_size = 16_000, {{scene_size}}, {DIM}

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn({DIM}, 1, {KERNEL}) / 20)


def load_model(model_file_path=""):
    model = Model()
    if model_file_path:
        model.load_state_dict(torch.load(model_file_path, weights_only=True))
    return model


def get_timestamp_embeddings(audio, model):
    frames = torch.conv1d(audio[:, None], model.weight, stride={STRIDE}).transpose(1, 2)
    times = torch.arange(frames.shape[1]) * 10.0 + 12.5
    return frames * hear_helper.GAIN, times.expand(len(audio), -1)


def get_scene_embeddings(audio, model):
    return get_timestamp_embeddings(audio, model)[0].amax(1).repeat(1, 2)[:, : model.scene_embedding_size]
"""
"""Its scene embedding is the maximum over time, which a frame of padding would change."""


def write_hear(folder: Path, *, scene_size: int = DIM, name: str = "tiny_hear", gain: float = 1.0) -> Path:
    (folder / "hear_helper.py").write_text(f"GAIN = {gain}\n")
    path = folder / f"{name}.py"
    path.write_text(HEAR.format(scene_size=scene_size))
    return path


def write_sentence_transformer(folder: Path, *, seed: int = 0) -> Path:
    """A wav2vec2 of one block with a mean over its frames, saved by the library; it was trained without a mask."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2Model,
        Wav2Vec2Processor,
    )

    backbone = folder / "backbone"
    backbone.mkdir(parents=True)
    config = Wav2Vec2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, conv_dim=(4, 4),
        conv_stride=(20, 16), conv_kernel=(20, 16), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, mask_time_prob=0.0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        Wav2Vec2Model(config).save_pretrained(backbone)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "A": 5}))
    tokenizer = Wav2Vec2CTCTokenizer(str(vocabulary))
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(return_attention_mask=False), tokenizer).save_pretrained(backbone)
    model = SentenceTransformer(modules=[Transformer(str(backbone)), Pooling(8)], device="cpu")
    model.save_pretrained(str(folder / "tiny-st"), create_model_card=False)
    return folder / "tiny-st"
