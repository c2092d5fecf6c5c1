"""Loads a TorchScript file (``torch.jit.save``) or an exported program (``torch.export.save``, ``.pt2``).

No Python code runs: TorchScript is a program of PyTorch's own interpreter, and an exported program is a graph whose
tensors are read by ``weights_only=True``.
"""

from __future__ import annotations

import inspect
import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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

__all__ = ["TorchScriptEncoder", "load_torchscript"]

_OPAQUE = "opaque_obj_"
_ONLY_TENSORS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def load_torchscript(path: str, arguments: Mapping[str, Any]) -> LoadedModel:
    """Load a TorchScript file or an exported program as an encoder.

    Parameters
    ----------
    path : str
    arguments : mapping
        ``sampling_rate``, ``hop_size_in_ms`` and ``input_seconds``. Attributes of a scripted module of these names are
        used where there is no argument.

    Raises
    ------
    EncoderError
        The file is neither, or an argument is missing.
    """
    where = f"torchscript:{path}"
    check_argument_names(where, arguments, DECLARATIONS)
    file = existing_file(where, path)
    try:
        graph, batch, samples, takes_lengths = (_exported if _is_exported(file) else _scripted)(file)
    except EncoderError:
        raise
    except Exception as error:
        raise EncoderError(
            f"{path} cannot be loaded by torch {torch.__version__}: give a file of torch.jit.save or torch.export.save "
            f"({one_line(error, most=100, typed=True)})"
        ) from error
    kind = TorchScriptEncoderWithLengths if takes_lengths else TorchScriptEncoder
    module = kind(graph, where=where, batch=batch, samples=samples, arguments=arguments)
    identity = {
        **encoder_identity(module, arguments={}),
        "arguments": by_content(arguments),
        "model_sha256": sha256_of_files([file]),
    }
    return LoadedModel(module=module, name=name_of(file), named_by="place", identity=identity)


class TorchScriptEncoder(GraphEncoder):
    """A scripted, traced or exported module, called as the encoder contract says.

    Parameters
    ----------
    graph : Module
        In evaluation mode.
    where : str
        Spec, for messages.
    batch, samples : int or None
        Fixed sizes of its input.
    arguments : mapping
        See `load_torchscript`.
    """

    def __init__(
        self, graph: nn.Module, *, where: str, batch: int | None, samples: int | None, arguments: Mapping[str, Any]
    ) -> None:
        super().__init__(where, batch=batch, samples=samples)
        self.training = False  # an exported program cannot be switched to another mode
        self.graph = graph
        stated = {name: getattr(graph, name) for name in DECLARATIONS if hasattr(graph, name)}
        self.declare(arguments, stated)

    def run(self, audio: Tensor, **given: Tensor) -> Any:
        """Call the graph on its own batch size and length."""
        return self.graph(audio, **given)


class TorchScriptEncoderWithLengths(TorchScriptEncoder):
    """A module whose ``forward`` also takes ``lengths``."""

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> Any:
        """Like `GraphEncoder.forward`, with the number of samples of each row without padding, int64 (batch,)."""
        return self.encode(audio) if lengths is None else self.encode(audio, lengths=lengths)


_Loaded = tuple[nn.Module, int | None, int | None, bool]


def _scripted(file: Path) -> _Loaded:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit as a whole: the file exists
        graph = torch.jit.load(str(file), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    arguments = [each.name for each in graph.forward.schema.arguments]
    return graph, None, None, "lengths" in arguments


def _is_exported(file: Path) -> bool:
    """Return whether an archive is an exported program; those of TorchScript contain code."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    return not any("/code/" in f"/{name}" for name in names) and any(
        name.endswith(("archive_format", "serialized_exported_program.json")) for name in names
    )


def _exported(file: Path) -> _Loaded:
    with zipfile.ZipFile(file) as archive:
        if any(_OPAQUE in name for name in archive.namelist()):
            raise EncoderError(f"{file} contains pickled objects besides tensors, which are never loaded")
    with _only_tensors_are_unpickled():
        program = torch.export.load(str(file))
    graph = program.module()
    takes = inspect.signature(graph.forward).parameters
    batch, samples = _fixed_sizes(program)
    return graph, batch, samples, "lengths" in takes


@contextmanager
def _only_tensors_are_unpickled() -> Iterator[None]:
    """Make ``torch.load`` reject pickles of anything but tensors and plain values, also inside ``torch.export``."""
    before = os.environ.get(_ONLY_TENSORS)
    os.environ[_ONLY_TENSORS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ONLY_TENSORS]
        else:
            os.environ[_ONLY_TENSORS] = before


def _fixed_sizes(program: Any) -> tuple[int | None, int | None]:
    """Return the batch size and the number of samples of the first input, None if they are dynamic."""
    name = program.graph_signature.user_inputs[0]
    [node] = [each for each in program.graph.nodes if each.op == "placeholder" and each.name == name]
    shape = tuple(node.meta["val"].shape)
    if len(shape) != 2:
        raise EncoderError(f"the exported program takes no waveform (batch, samples): its input is {shape}")
    batch, samples = (each if isinstance(each, int) else None for each in shape)
    return batch, samples
