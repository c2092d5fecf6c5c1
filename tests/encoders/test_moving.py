"""An encoder goes to its device with all that it has, what it kept of an earlier input among that."""

from __future__ import annotations

import torch

from featstore.encoders.devices import move


class Keeps(torch.nn.Module):
    """Keeps a mask by length and the last table of positions, as many encoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)
        self.register_buffer("window", torch.ones(2))
        self.positions: torch.Tensor | None = None
        self.masks: dict[int, torch.Tensor] = {}
        self.names = {1: "one"}

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        n = audio.shape[1]
        if self.positions is None or len(self.positions) != n:
            self.positions = torch.arange(n, device=audio.device)
        mask = self.masks.setdefault(n, torch.ones(n, device=audio.device))
        return audio + self.positions + mask


def test_what_is_kept_beside_parameters_and_buffers_moves_too() -> None:
    outer = torch.nn.Sequential(Keeps())
    with torch.inference_mode():
        outer(torch.zeros(1, 5))
    device = torch.device("meta")
    move(outer, device)
    inner = outer[0]
    found = [inner.linear.weight, inner.window, inner.positions, inner.masks[5]]
    assert {each.device for each in found} == {device}
    assert inner.names == {1: "one"}
    with torch.inference_mode():
        assert outer(torch.zeros(1, 5, device=device)).device == device
