"""The one function of librosa that hearbaseline, of 2021, calls, as later releases of librosa do not allow."""

from __future__ import annotations

import numpy as np


class filters:  # noqa: N801 - a module in librosa
    @staticmethod
    def mel(sr: float, *, n_fft: int, n_mels: int) -> np.ndarray:
        """Triangles on Slaney's mel scale with areas of 1, float32 (n_mels, 1 + n_fft // 2)."""
        top = 15 + 27 * np.log(sr / 2 / 1000) / np.log(6.4)
        mels = np.linspace(0, top, n_mels + 2)
        hz = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mels - 15)))
        at = np.fft.rfftfreq(n_fft, 1 / sr)
        rising = (at - hz[:-2, None]) / np.diff(hz)[:-1, None]
        falling = (hz[2:, None] - at) / np.diff(hz)[1:, None]
        return (np.maximum(0, np.minimum(rising, falling)) * (2 / (hz[2:] - hz[:-2]))[:, None]).astype(np.float32)
