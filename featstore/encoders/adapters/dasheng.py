"""Dasheng (Dinkel et al., Interspeech 2024) through the ``dasheng`` package."""

from __future__ import annotations

import importlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featstore.encoders.contract import LoadedModel
from featstore.encoders.fingerprint import encoder_identity
from featstore.errors import EncoderError
from featstore.records import sha256_of

__all__ = ["SIZES", "DashengEncoder", "load_dasheng"]


class DashengEncoder(nn.Module):
    """Blocks of a mel spectrum of 40 ms, 25 frames a second.

    The range of its spectrum is measured from the loudest point of each window. The package by itself measures it from
    the loudest of the whole batch. The model was trained without a mask: windows of one padded length are batched, and
    frames of padding are trimmed.

    A window longer than the model's positions (10.08 s of the published ones) is encoded in pieces of that length, each
    by itself, and so are its hidden states: that is the package's own way.

    Parameters
    ----------
    model : Module
        ``dasheng.pretrained.pretrained.Dasheng``.
    """

    sampling_rate = 16_000

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.output_dim = self.layer_dim = int(model.embed_dim)
        self._hop_samples = int(model.hop_size) * int(model.patch_stride[-1])
        self.hop_size_in_ms = self.layer_hop_in_ms = 1000.0 * self._hop_samples / self.sampling_rate
        self.n_layers = len(model.blocks)
        self._seen: dict[int, list[Tensor]] = {}  # pieces of the hidden states that are wanted, during a pass
        # hooks for good: under torch.compile, ones that came and went with each pass would be compiled with each
        model.blocks[0].register_forward_pre_hook(lambda _block, given: self._see(0, given[0]))
        for number, block in enumerate(model.blocks, start=1):
            block.register_forward_hook(lambda _block, _given, made, number=number: self._see(number, made))

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, None, Tensor]:
        """float32 (batch, samples) -> (batch, frames, output_dim), None, int64 (batch,)."""
        return self.forward_layers(audio, lengths, layers=(None,))[0]

    def forward_layers(
        self, audio: Tensor, lengths: Tensor | None = None, *, layers: tuple[int | None, ...]
    ) -> tuple[tuple[Tensor, None, Tensor], ...]:
        """One pass: frames and their counts for each hidden state, and for None the model's own, after its last norm.

        State 0 is what enters the first block, positions added; state K is what block K gives.
        """
        audio = nn.functional.pad(audio, (0, max(0, self._hop_samples - audio.shape[1])))
        with torch.autocast(audio.device.type, enabled=False):
            spectra = self.model.front_end(audio[:, None])  # a channel of its own: the range is then each window's own
            spectra = self.model.init_bn(spectra)
        seen: dict[int, list[Tensor]] = {layer: [] for layer in layers if layer is not None}
        self._seen = seen
        try:
            last: Tensor = self.model.forward_spectrogram(spectra)
        finally:
            self._seen = {}  # of a batch that does not fit nothing is kept
        if lengths is None:
            lengths = torch.full((len(audio),), audio.shape[1], device=audio.device)
        n_frames = torch.round(lengths / self._hop_samples).long().clamp(1, last.shape[1])
        return tuple((last if layer is None else torch.cat(seen[layer], dim=1), None, n_frames) for layer in layers)

    def _see(self, layer: int, state: Tensor) -> None:
        """Keep a hidden state of a piece, where it is wanted."""
        if layer in self._seen:
            self._seen[layer].append(state)


SIZES = {"base": "dasheng_base", "0.6b": "dasheng_06B", "1.2b": "dasheng_12B"}
_HEADS = {768: 12, 1280: 16, 1536: 24}  # of the published sizes, by width: what the package's own functions pass


def load_dasheng(which: str) -> LoadedModel:
    """Load a published size, or a checkpoint of the package by path.

    Raises
    ------
    EncoderError
        The package or torchaudio is missing, or there are no such weights; the message says what to do.
    """
    size, path = which.lower(), Path(which).expanduser()
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
    except (ImportError, OSError) as error:  # a torchaudio of another release than torch's fails at its libraries
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
    """Constructor arguments: the checkpoint's own; where it says nothing of its size, what its weights say."""
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
