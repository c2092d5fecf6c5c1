"""Dasheng (Dinkel et al., Interspeech 2024) through the ``dasheng`` package.

The package makes its spectra with torchaudio, which has to be of the release that fits torch: its absence is one line.
Weights are read by ``torch.load(weights_only=True)``, so that a checkpoint holds tensors and plain values alone.
"""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featstore.errors import EncoderError

__all__ = ["SIZES", "DashengEncoder", "load_dasheng"]

SIZES = {"base": "dasheng_base", "0.6b": "dasheng_06B", "1.2b": "dasheng_12B"}


class DashengEncoder(nn.Module):
    """Blocks of a mel spectrum of 40 ms, 25 frames a second.

    The range of its spectrum is measured from the loudest point of each window. The package by itself measures it from
    the loudest of the whole batch. The model was trained without a mask: windows of one padded length are batched, and
    frames of padding are trimmed.

    Parameters
    ----------
    model : Module
        ``dasheng.pretrained.pretrained.Dasheng``.
    """

    sampling_rate = 16_000

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.output_dim = int(model.embed_dim)
        self._hop_samples = int(model.hop_size) * int(model.patch_stride[-1])
        self.hop_size_in_ms = 1000.0 * self._hop_samples / self.sampling_rate

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, None, Tensor]:
        """float32 (batch, samples) -> (batch, frames, output_dim), None, int64 (batch,)."""
        audio = nn.functional.pad(audio, (0, max(0, self._hop_samples - audio.shape[1])))
        with torch.autocast(audio.device.type, enabled=False):
            spectra = self.model.front_end(audio[:, None])  # a channel of its own: the range is then each window's own
            spectra = self.model.init_bn(spectra)
        frames: Tensor = self.model.forward_spectrogram(spectra)
        if lengths is None:
            lengths = torch.full((len(audio),), audio.shape[1], device=audio.device)
        n_frames = torch.round(lengths / self._hop_samples).long().clamp(1, frames.shape[1])
        return frames, None, n_frames


def load_dasheng(which: str) -> tuple[DashengEncoder, str]:
    """Load a published size, or a checkpoint of its package by path; and the name of its feature sets.

    Raises
    ------
    EncoderError
        The package or torchaudio is missing, or there are no such weights; the message says what to do.
    """
    package = _package()
    size = which.lower()
    if size not in SIZES and not Path(which).expanduser().is_file():
        raise EncoderError(
            f"there is no dasheng:{which}: give {', '.join(SIZES)}, or the path of a checkpoint of the dasheng package"
        )
    try:
        dump = _published(package, SIZES[size]) if size in SIZES else _read(Path(which).expanduser())
        model = package.Dasheng(**dump["config"])
        model.load_state_dict(dump["model"], strict=True)
    except pickle.UnpicklingError as error:
        raise EncoderError(
            f"{which} is a pickle that holds more than tensors, which is never run: save {{'model': state dict, "
            "'config': constructor arguments}} with torch.save"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise EncoderError(
            f"dasheng:{which} cannot be loaded: give the path of a checkpoint that was downloaded before, with 'model' "
            f"and 'config' in it ({type(error).__name__}: {reason})"
        ) from error
    return DashengEncoder(model.eval()), f"dasheng-{size}" if size in SIZES else Path(which).stem


def _package() -> Any:
    try:
        return importlib.import_module("dasheng.pretrained.pretrained")
    except (ImportError, OSError) as error:  # torchaudio of another release than torch's fails at its libraries
        missing = getattr(error, "name", None) or " ".join(str(error).split())[:160]
        raise EncoderError(
            f"dasheng: encoders need the dasheng package and the torchaudio that fits torch {torch.__version__} "
            f"(not usable: {missing}): pip install 'featstore[dasheng]'"
        ) from error


def _published(package: Any, name: str) -> Any:
    url = package.PRETRAINED_CHECKPOINTS[name]
    return torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True, progress=False)


def _read(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)
