"""The colours of classes are distinct for every kind of colour vision."""

from __future__ import annotations

import re
from importlib import resources

import numpy as np
import pytest

# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]])


def palette(theme: str) -> list[str]:
    script = resources.files("featstore.explore").joinpath("templates/marks.js").read_text(encoding="utf-8")
    [colours] = re.findall(rf"{theme}: \[([^\]]*)\]", script)
    return re.findall("#[0-9a-f]{6}", colours)


def linear(colours: list[str]) -> np.ndarray:
    coded = np.array([[int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)] for colour in colours])
    return np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* for the white of D65."""
    ratio = rgb @ XYZ.T / XYZ.sum(axis=1)
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("vision", VISION)
def test_no_two_colours_of_classes_look_alike(theme: str, vision: str) -> None:
    colours = palette(theme)
    assert len(colours) == 8
    seen = lab((linear(colours) @ np.array(VISION[vision]).T).clip(0, 1))
    distances = np.linalg.norm(seen[:, None] - seen[None], axis=2)[np.triu_indices(8, 1)]
    assert distances.min() > 12  # CIE76; 2.3 is just noticeable
