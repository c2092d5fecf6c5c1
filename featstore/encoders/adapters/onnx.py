"""Loads an ONNX file. Only this module imports onnxruntime, an optional library: ``pip install featstore[onnx]``.

The graph is data: onnxruntime runs operators that it contains itself, on the CPU.
"""

from __future__ import annotations

import importlib
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featstore.encoders.adapters.model_file import (
    DECLARATIONS,
    GraphEncoder,
    check_argument_names,
    existing_file,
    name_of,
    sha256_of_files,
)
from featstore.encoders.contract import LoadedModel
from featstore.encoders.fingerprint import by_content, encoder_identity
from featstore.errors import EncoderError
from featstore.formatting import one_line

__all__ = ["OnnxEncoder", "load_onnx"]

_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


def load_onnx(path: str, arguments: Mapping[str, Any]) -> LoadedModel:
    """Load an ONNX file as an encoder.

    Parameters
    ----------
    path : str
    arguments : mapping
        ``sampling_rate``, ``hop_size_in_ms``, ``input_seconds``, and ``input`` and ``output``, the names of the
        waveform and of the frames or vector. The metadata of the file can give the first three as well.

    Raises
    ------
    EncoderError
        onnxruntime is missing, the file is not an ONNX model with one waveform input, or an argument is missing.
    """
    where = f"onnx:{path}"
    check_argument_names(where, arguments, (*DECLARATIONS, "input", "output"))
    file = existing_file(where, path)
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise EncoderError(
            f"onnx: encoders need {error.name or error}, which is not installed: pip install 'featstore[onnx]'"
        ) from None
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors: they are raised as well, and warnings concern the file's exporter
    try:
        session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EncoderError(
            f"{path} cannot be loaded by onnxruntime {runtime.__version__}, is it an ONNX file? "
            f"({one_line(error, typed=True)})"
        ) from error
    module = OnnxEncoder(session, where=where, arguments=arguments)
    identity = {
        **encoder_identity(module, arguments={}),
        "arguments": by_content(arguments),
        "model_sha256": sha256_of_files([file, *external_files(file)]),
    }
    return LoadedModel(module=module.eval(), name=name_of(file), named_by="place", identity=identity)


class OnnxEncoder(GraphEncoder):
    """The graph of an ONNX file, run by onnxruntime on the CPU; rows and samples are fixed where its input fixes them.

    Parameters
    ----------
    session
        ``onnxruntime.InferenceSession``
    where : str
        Spec, for messages.
    arguments : mapping
        See `load_onnx`.
    """

    def __init__(self, session: Any, *, where: str, arguments: Mapping[str, Any]) -> None:
        inputs = session.get_inputs()
        entry = _named(inputs, arguments.get("input"), "input", where)
        others = [each.name for each in inputs if each.name != entry.name]
        if others:
            raise EncoderError(f"{where} needs more inputs than a waveform ({', '.join(others)}): export it with one")
        if entry.type not in _FLOATS:
            raise EncoderError(f"{where} takes no waveform: its input {entry.name} is {entry.type}")
        batch, samples, shape = _waveform_axes(entry, where)
        super().__init__(where, batch=batch, samples=samples)
        self._session, self._shape = session, shape
        self._input, self._dtype = entry.name, _FLOATS[entry.type]
        self._output = _named(session.get_outputs(), arguments.get("output"), "output", where).name
        metadata = session.get_modelmeta().custom_metadata_map
        stated = {**metadata, "sampling_rate": metadata.get("sampling_rate", metadata.get("sample_rate"))}
        self.declare(arguments, stated)

    def compile(self, *_: Any, **__: Any) -> None:
        """Do nothing: onnxruntime runs the graph."""  # torch.compiler.disable would import torch._dynamo, for 2 s

    def run(self, audio: Tensor, **_: Tensor) -> Tensor:
        """Run the session on its own batch size and length."""
        waves = audio.detach().cpu().numpy().astype(self._dtype).reshape(self._shape(*audio.shape))
        [found] = self._session.run([self._output], {self._input: waves})
        return torch.from_numpy(np.ascontiguousarray(found, np.float32))


def _named(entries: Any, wanted: Any, what: str, where: str) -> Any:
    """Return the input or output that an argument names, or else the only one."""
    names = [each.name for each in entries]
    if wanted is None and len(entries) == 1:
        return entries[0]
    if wanted is None:
        shapes = ", ".join(f"{each.name} {tuple(each.shape)}" for each in entries)
        raise EncoderError(f"{where} has {len(entries)} {what}s: choose one with --encoder-arg {what}=NAME of {shapes}")
    if wanted not in names:
        raise EncoderError(f"{where} has no {what} {wanted!r}: it has {', '.join(names)}")
    return entries[names.index(wanted)]


def _waveform_axes(entry: Any, where: str) -> tuple[int | None, int | None, Any]:
    """Return the fixed batch size, the fixed number of samples, and the shape of an input from rows and samples."""
    fixed = [each if isinstance(each, int) and each > 0 else None for each in entry.shape]
    if len(fixed) == 2:
        return fixed[0], fixed[1], lambda rows, samples: (rows, samples)
    if len(fixed) == 3 and fixed[1] == 1:
        return fixed[0], fixed[2], lambda rows, samples: (rows, 1, samples)
    if len(fixed) == 3 and fixed[2] == 1:
        return fixed[0], fixed[1], lambda rows, samples: (rows, samples, 1)
    raise EncoderError(
        f"{where} takes no waveform (batch, samples), (batch, 1, samples) or (batch, samples, 1): its input "
        f"{entry.name} is {tuple(entry.shape)}"
    )


# --- files that a model refers to -------------------------------------------------------------------------------------

# Numbers of the fields of onnx.proto that lead from a model to its tensors.
_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER, _NODE_ATTRIBUTE = 7, 1, 5, 5
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = (5, 10), (6, 11)
_TENSOR_EXTERNAL_DATA, _ENTRY_KEY, _ENTRY_VALUE = 13, 1, 2


def external_files(path: Path) -> list[Path]:
    """Return the files that contain tensors of an ONNX file, sorted: models over 2 GB consist of several files."""
    if path.stat().st_size == 0:
        return []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        view = memoryview(content)
        try:
            names = {name for graph in _fields(view, _MODEL_GRAPH) for name in _external_in_graph(graph)}
        finally:
            view.release()
    return [found for name in sorted(names) if (found := path.parent / name).is_file()]


def _external_in_graph(graph: memoryview) -> Iterator[str]:
    for tensor in _fields(graph, _GRAPH_INITIALIZER):
        yield from _external_in_tensor(tensor)
    for node in _fields(graph, _GRAPH_NODE):
        for attribute in _fields(node, _NODE_ATTRIBUTE):
            for tensor in _fields(attribute, *_ATTRIBUTE_TENSORS):
                yield from _external_in_tensor(tensor)
            for inner in _fields(attribute, *_ATTRIBUTE_GRAPHS):
                yield from _external_in_graph(inner)


def _external_in_tensor(tensor: memoryview) -> Iterator[str]:
    for entry in _fields(tensor, _TENSOR_EXTERNAL_DATA):
        if [bytes(key) for key in _fields(entry, _ENTRY_KEY)] == [b"location"]:
            yield from (bytes(value).decode() for value in _fields(entry, _ENTRY_VALUE))


def _fields(message: memoryview, *numbers: int) -> Iterator[memoryview]:
    """Yield the length-delimited fields of these numbers of a protocol buffer."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            _, at = _varint(message, at)
        elif kind == 2:
            size, at = _varint(message, at)
            if number in numbers:
                yield message[at : at + size]
            at += size
        else:  # fixed64, fixed32
            at += 8 if kind == 1 else 4


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
