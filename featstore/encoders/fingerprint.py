"""What an encoder is, as hashes: its state, its class and source, its arguments. No path or device is part of it."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

__all__ = ["encoder_identity", "source_sha256", "state_sha256"]


def state_sha256(module: nn.Module) -> str:
    """Hash of a state dict: name, dtype, shape and bytes of every entry, in order of name."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, torch.Tensor):
            tensor = value.detach().cpu().contiguous()
            digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        else:  # what a module's get_extra_state returns may be anything
            digest.update(f"{name}|{value!r}|".encode())
    return digest.hexdigest()


def source_sha256(kind: type) -> str:
    """Hash of the file that defines a class and of the files beside it that it imports, line endings apart.

    Files beside it are those of its folder and of the folders below, reached by the names that a module holds once it
    is imported. What lies elsewhere is a library: its version stands in every part's commit record.
    """
    home = sys.modules.get(kind.__module__)
    folder = _file_of(home).parent if home is not None and _file_of(home) is not None else None  # type: ignore[union-attr]
    texts = {_source(home)} if home is not None else set()
    seen, waiting = {home}, [home]
    while folder is not None and waiting:
        for module in _modules_named_in(waiting.pop()):
            path = _file_of(module)
            if module not in seen and path is not None and path.is_relative_to(folder):
                seen.add(module)
                waiting.append(module)
                texts.add(_source(module))
    texts.discard("")
    digests = sorted(hashlib.sha256(text.encode()).hexdigest() for text in texts or {kind.__module__})
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _modules_named_in(module: ModuleType | None) -> Iterator[ModuleType]:
    """Modules that a module's names are, or were defined in."""
    for value in tuple(vars(module).values()):
        found = value if isinstance(value, ModuleType) else sys.modules.get(str(getattr(value, "__module__", None)))
        if isinstance(found, ModuleType):
            yield found


def _file_of(module: ModuleType) -> Path | None:
    name = getattr(module, "__file__", None)
    return Path(name).resolve() if isinstance(name, str) else None


def _source(module: ModuleType) -> str:
    try:
        text = inspect.getsource(module)
    except (OSError, TypeError):
        return ""
    return "\n".join(line.rstrip() for line in text.splitlines())


def encoder_identity(module: nn.Module, *, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a recipe that says which encoder it is."""
    return {
        "class": type(module).__qualname__,
        "source_sha256": source_sha256(type(module)),
        "state_sha256": state_sha256(module),
        "arguments": dict(arguments),
    }
