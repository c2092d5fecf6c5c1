"""Loads a Dasheng model. Only this module imports the ``dasheng`` package.

The package computes spectra with torchaudio, whose release must match that of torch; if it does not, the error is one
line. Weights are read by ``torch.load(weights_only=True)``: a checkpoint contains only tensors and plain values.
"""

from __future__ import annotations

import importlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from featstore.encoders.adapters.dasheng_encoder import DashengEncoder
from featstore.encoders.contract import LoadedModel
from featstore.encoders.fingerprint import encoder_identity
from featstore.errors import EncoderError
from featstore.files import expanded
from featstore.records import sha256_of

__all__ = ["SIZES", "load_dasheng"]

SIZES = {"base": "dasheng_base", "0.6b": "dasheng_06B", "1.2b": "dasheng_12B"}
_HEADS = {768: 12, 1280: 16, 1536: 24}  # of the published sizes, by width, as in the functions of the package


def load_dasheng(which: str) -> LoadedModel:
    """Load a published size, or a checkpoint of the package by path.

    Raises
    ------
    EncoderError
        The package or torchaudio is missing, or the weights do not exist; the message has the fix.
    """
    size, path = which.lower(), expanded(which)
    if size not in SIZES and not (which and path.is_file()):
        raise EncoderError(
            f"there is no dasheng:{which}: give {', '.join(SIZES)}, or the path of a checkpoint of the dasheng package"
        )
    package = _package()
    try:
        dump = _published(package, SIZES[size]) if size in SIZES else _read(path)
        settings = _settings(dump)
        model = package.Dasheng(**settings)
        model.load_state_dict(dump["model"], strict=True)
    except pickle.UnpicklingError as error:
        raise EncoderError(
            f"{which} is a pickle that holds more than tensors, which is never run: save its 'model' and 'config' alone"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise EncoderError(
            f"dasheng:{which} cannot be loaded: give the path of a checkpoint that was downloaded before, with 'model' "
            f"and 'config' in it ({type(error).__name__}: {reason})"
        ) from error
    module = DashengEncoder(model.eval())
    identity = {**encoder_identity(module, arguments={}), "config_sha256": sha256_of(_plain(settings))}
    name = f"dasheng-{size}" if size in SIZES else _name(path)
    return LoadedModel(module=module, name=name, named_by="place", identity=identity)


def _package() -> Any:
    try:
        return importlib.import_module("dasheng.pretrained.pretrained")
    except (ImportError, OSError) as error:  # a torchaudio release that does not match torch fails to load libraries
        missing = getattr(error, "name", None) or " ".join(str(error).split())[:160]
        raise EncoderError(
            f"dasheng: encoders need the dasheng package, and the torchaudio that fits torch {torch.__version__}, from "
            f"where that came: pip install 'featstore[dasheng]' (not usable: {missing})"
        ) from error


def _published(package: Any, name: str) -> Any:
    url = package.PRETRAINED_CHECKPOINTS[name]
    return torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True, progress=False)


def _read(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _settings(dump: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor arguments: those of the checkpoint, with the size taken from its weights."""
    weights, told = dump["model"], dict(dump["config"])
    width = int(weights["norm.weight"].shape[0])
    blocks = {match[1] for name in weights if (match := re.match(r"blocks\.(\d+)\.", name))}
    seen = {"embed_dim": width, "depth": len(blocks)}
    heads = {"num_heads": _HEADS[width]} if width in _HEADS else {}
    return {**heads, **told, **seen}


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _name(path: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._+=-]+", "-", path.stem).lstrip("._+=-") or "dasheng"
