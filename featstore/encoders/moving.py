"""Moves an encoder to its device, with what it keeps beside parameters and buffers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["move"]

_OF_ANY_MODULE = frozenset(vars(nn.Module()))


def move(module: nn.Module, device: torch.device) -> None:
    """Move parameters, buffers, and tensors that are plain attributes or lie in a dictionary that is one.

    ``Module.to`` leaves the latter behind. Loading runs every encoder once on the CPU, and what it keeps of that for
    inputs of the same length, such as a table of positions, would be found there again: rotary embeddings of
    transformers' conformers are kept so.
    """
    module.to(device)
    for each in module.modules():
        for name, value in vars(each).items():
            if name not in _OF_ANY_MODULE:
                vars(each)[name] = _moved(value, device)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if type(value) is dict and any(isinstance(kept, Tensor) for kept in value.values()):
        return {key: _moved(kept, device) for key, kept in value.items()}
    return value
