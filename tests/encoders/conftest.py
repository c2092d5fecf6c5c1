from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

PACKAGE = '''
import torch

PRETRAINED_CHECKPOINTS = {
    "dasheng_base": "https://example.invalid/files/dasheng_base.pt?download=1",
    "dasheng_06B": "https://example.invalid/files/dasheng_06b.pt?download=1",
    "dasheng_12B": "https://example.invalid/files/dasheng_12b.pt?download=1",
}


class Decibels(torch.nn.Module):
    """As torchaudio's AmplitudeToDB: without channels, the range is measured from the loudest point of the batch."""

    def forward(self, audio):
        short = -audio.shape[-1] % 160
        steps = torch.nn.functional.pad(audio, (0, short)).unflatten(-1, (-1, 160))
        power = torch.fft.rfft(steps)[..., :4].abs().square().transpose(-1, -2)
        decibels = 10 * power.clamp(min=1e-10).log10()
        over = (-3, -2, -1) if decibels.ndim == 3 else (-2, -1)
        return torch.maximum(decibels, decibels.amax(over, keepdim=True) - 20.0)


class Dasheng(torch.nn.Module):
    def __init__(self, embed_dim, depth, num_heads, hop_size=160):
        super().__init__()
        self.embed_dim, self.hop_size, self.patch_stride = embed_dim, hop_size, (4, 4)
        self.front_end = Decibels()
        self.init_bn = torch.nn.Identity()
        self.patches = torch.nn.Conv2d(1, embed_dim, (4, 4), (4, 4))
        self.blocks = torch.nn.Sequential(
            *(torch.nn.TransformerEncoderLayer(embed_dim, num_heads, 8, 0.0, batch_first=True) for _ in range(depth))
        )
        self.norm = torch.nn.LayerNorm(embed_dim)

    def forward_spectrogram(self, x, x_length=None):
        return self.norm(self.blocks(self.patches(x).flatten(2).transpose(1, 2)))

    def forward(self, x, x_length=None):
        return self.forward_spectrogram(self.init_bn(self.front_end(x)[:, None]))


def dasheng_base(path=None, **more):
    dump = torch.hub.load_state_dict_from_url(path or PRETRAINED_CHECKPOINTS["dasheng_base"], map_location="cpu")
    model = Dasheng(**{**dump["config"], **more})
    model.load_state_dict(dump["model"])
    return model
'''


@pytest.fixture
def dasheng_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the shape of dasheng 0.0.9, which needs a torchaudio that does not go with every torch.

    Returns the checkpoint of its base size, which lies where ``torch.hub`` keeps what it has downloaded.
    """
    inner = tmp_path / "site/dasheng/pretrained"
    inner.mkdir(parents=True)
    (inner / "__init__.py").touch()
    (inner / "pretrained.py").write_text(PACKAGE)
    (inner.parent / "__init__.py").write_text("from .pretrained.pretrained import dasheng_base\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "dasheng"]:
        monkeypatch.delitem(sys.modules, name)
    from importlib import import_module

    made = import_module("dasheng.pretrained.pretrained")
    for name in ("dasheng", "dasheng.pretrained", "dasheng.pretrained.pretrained"):
        monkeypatch.setitem(sys.modules, name, sys.modules[name])  # gone again when the test is over
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = made.Dasheng(embed_dim=8, depth=2, num_heads=2)
    checkpoint = tmp_path / "torch/hub/checkpoints/dasheng_base.pt"
    checkpoint.parent.mkdir(parents=True)
    torch.save({"model": model.state_dict(), "config": {"num_heads": 2, "embed_dim": 8, "depth": 2}}, checkpoint)
    return checkpoint
