"""`featstore check`: encoders with one defect each, and which check tells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from featstore.encoders import load_encoder
from featstore.encoders.check import Budget, Check, check_encoder
from featstore.encoders.check.batching import check_batch_invariance, check_determinism, check_padding
from featstore.encoders.check.bench import Bench, clipped, tones
from featstore.encoders.check.declarations import check_hop
from featstore.encoders.encoder import Encoder
from featstore.extract import ExtractOptions, plan_recipe
from featstore.extract.windows import Padding, Window, plan_windows
from handmade import build

NAMES = [
    "contract",
    "identity",
    "determinism",
    "batch invariance",
    "padding",
    "padding of X-ARES",
    "hop",
    "10 ms of audio",
    "10 min of audio",
    "silence",
    "clipped audio",
    "float16 range",
    "speed",
]
BRIEF = Budget(long_seconds=5.0, speed_seconds=0.05)


def checked(encoder: Encoder | torch.nn.Module, *, budget: Budget = BRIEF, **options: Any) -> dict[str, Check]:
    """All checks by name, under the options of an extraction."""
    ready = encoder if isinstance(encoder, Encoder) else build(encoder)
    settings = ExtractOptions(**options)
    recipe = plan_recipe(ready, ready.outputs[0], device="cpu", options=settings)

    plan = partial(
        plan_windows, crop_seconds=None, padding=Padding.parse(settings.padding), sample_rate_hz=recipe.sample_rate_hz
    )
    checks = check_encoder(ready, recipe=recipe, device="cpu", plan=plan, budget=budget, on_step=lambda _: None)
    return {check.name: check for check in checks}


def names(checks: Mapping[str, Check], verdict: str) -> set[str]:
    return {name for name, check in checks.items() if check.verdict == verdict}


class Sound(torch.nn.Module):
    """Without a defect: blocks of 20 ms at 1 kHz, each on its own; silence gives a frame that is not zero."""

    sampling_rate, output_dim, hop_size_in_ms = 1000, 8, 20.0

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn((20, 8), generator=torch.Generator().manual_seed(0)))

    def forward(self, audio: torch.Tensor) -> Any:
        blocks = functional.pad(audio, (0, -audio.shape[1] % 20)).unflatten(1, (-1, 20))
        return torch.tanh(blocks @ self.weight) + 0.1


class DropoutLeftOn(Sound):
    def forward(self, audio: torch.Tensor) -> Any:
        return functional.dropout(super().forward(audio), 0.2)


class ModuleLeftInTraining(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.drop = torch.nn.Dropout(0.2)

    def forward(self, audio: torch.Tensor) -> Any:
        self.drop.train()
        return self.drop(super().forward(audio))


class Remembers(Sound):
    """Goes on from where the last forward ended."""

    def forward(self, audio: torch.Tensor) -> Any:
        frames = super().forward(audio)
        before, self.last = getattr(self, "last", torch.zeros(8)), frames[-1, -1]
        return frames + before


class PeakOfTheBatch(Sound):
    def forward(self, audio: torch.Tensor) -> Any:
        return super().forward(audio / audio.abs().amax().clamp(min=1e-3))


class BatchStatistics(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(8, track_running_stats=False)

    def forward(self, audio: torch.Tensor) -> Any:
        return self.norm(super().forward(audio).transpose(1, 2)).transpose(1, 2)


class WrongHop(Sound):
    hop_size_in_ms = 22.0


class NoNumberForSilence(Sound):
    """Loudness over blocks of 3 s that are above a gate: there are none, where all is silent."""

    def forward(self, audio: torch.Tensor) -> Any:
        loud = [block.square().mean() for row in audio for block in row.split(3000) if block.any()]
        enough = audio.shape[1] < 3000 or loud
        return super().forward(audio) + (0.0 if enough else torch.stack([torch.tensor(0.0) / 0.0]).mean())


class NoNumberAtFullScale(Sound):
    def forward(self, audio: torch.Tensor) -> Any:
        return super().forward(torch.atanh(audio))


class BeyondFloat16(Sound):
    def forward(self, audio: torch.Tensor) -> Any:
        return 1e5 * super().forward(audio)


class NothingShort(Sound):
    def forward(self, audio: torch.Tensor) -> Any:
        if audio.shape[1] < 450:
            raise RuntimeError("kernel size can't be greater than input")
        return super().forward(audio)


class NothingLong(Sound):
    """A table of positions that ends at a minute."""

    def forward(self, audio: torch.Tensor) -> Any:
        if audio.shape[1] > 60_000:
            raise IndexError("index out of range in self")
        return super().forward(audio)


class NothingOverSixSeconds(Sound):
    def forward(self, audio: torch.Tensor) -> Any:
        if audio.shape[1] > 6000:
            raise IndexError("index out of range in self")
        return super().forward(audio)


class Truncates(Sound):
    def forward(self, audio: torch.Tensor) -> Any:
        return super().forward(audio[:, :30_000])


class GlobalMean(Sound):
    """A gate by the mean over all of the input, padding included (squeeze and excitation)."""

    def forward(self, audio: torch.Tensor) -> Any:
        frames = super().forward(audio)
        return frames * torch.tanh(frames.abs().mean(1, keepdim=True))


class GroupNorm(Sound):
    """As the first convolution of wav2vec 2.0 base has it: statistics over time."""

    def forward(self, audio: torch.Tensor) -> Any:
        return functional.group_norm(super().forward(audio).transpose(1, 2), 8).transpose(1, 2) + 0.1


class MasksItsMean(Sound):
    """The same gate, by the real frames alone."""

    def forward(self, audio: torch.Tensor, lengths: torch.Tensor | None = None) -> Any:
        frames = super().forward(audio)
        real = torch.full((len(audio),), audio.shape[1]) if lengths is None else lengths
        mask = (torch.arange(frames.shape[1])[None] < (real / 20).round().clamp(min=1)[:, None])[..., None]
        return frames * torch.tanh((frames.abs() * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True))


DEFECTS = {
    DropoutLeftOn: {"determinism"},
    ModuleLeftInTraining: {"determinism"},
    Remembers: {"determinism"},
    PeakOfTheBatch: {"batch invariance"},
    # its statistics are over the batch and over time: the padding of a window alone is in them too
    BatchStatistics: {"batch invariance", "padding"},
    WrongHop: {"hop"},
    NoNumberForSilence: {"silence"},
    NoNumberAtFullScale: {"clipped audio"},
    BeyondFloat16: {"float16 range"},
    NothingShort: {"10 ms of audio"},
    NothingOverSixSeconds: {"10 min of audio"},
    NothingLong: {"10 min of audio"},
    GlobalMean: {"padding"},
    GroupNorm: {"padding"},
}


@cache
def of_defect(kind: type[Sound]) -> dict[str, Check]:
    return checked(kind())


@pytest.mark.parametrize("encoder", ["logmel", "mfcc"])
def test_the_built_ins_pass_every_check(encoder: str) -> None:
    checks = checked(load_encoder(encoder))
    assert list(checks) == NAMES
    assert {check.verdict for check in checks.values()} == {"ok"}, checks


@pytest.mark.parametrize("kind", [Sound, MasksItsMean])
def test_an_encoder_without_a_defect_passes_every_check(kind: type[Sound]) -> None:
    checks = of_defect(kind)
    assert list(checks) == NAMES
    assert {check.verdict for check in checks.values()} == {"ok"}, checks


@pytest.mark.parametrize("kind", DEFECTS, ids=lambda kind: kind.__name__)
def test_a_defect_fails_the_check_that_is_for_it_and_no_other(kind: type[Sound]) -> None:
    checks = of_defect(kind)
    assert names(checks, "failed") == DEFECTS[kind], checks
    for check in checks.values():
        assert check.advice or check.verdict == "ok"
        assert "\n" not in check.measured + check.advice


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        (DropoutLeftOn, "determinism", "dropout left on"),
        (ModuleLeftInTraining, "determinism", "drop is in training mode"),
        (Remembers, "determinism", "keep no state"),
        (DropoutLeftOn, "batch invariance", "fix determinism first"),
        (PeakOfTheBatch, "batch invariance", "for each row by itself"),
        (WrongHop, "hop", "hop_size_in_ms must be 20"),
        (BeyondFloat16, "float16 range", "--dtype float32"),
        (NothingLong, "10 min of audio", "--max-window-seconds 60"),
        (Truncates, "10 min of audio", "--max-window-seconds 30"),
        (GroupNorm, "padding", "--padding exact"),
    ],
)
def test_what_to_do_is_named(kind: type[Sound], name: str, said: str) -> None:
    assert said in of_defect(kind)[name].advice


def test_what_the_advice_says_is_a_cure() -> None:
    assert not names(checked(GlobalMean(), padding="exact"), "failed")
    assert not names(checked(BeyondFloat16(), frame_dtype="float32"), "failed")
    assert not names(checked(MasksItsMean()), "failed")


def test_what_a_quantum_does_to_a_global_mean_is_measured_right() -> None:
    """By hand: gates of 1.01 s of frames, and of those with zeros up to 1.25 s, on what both pool, 50 frames."""
    wave = torch.tensor(tones(1.01, rate_hz=1000, seed=0))[None]
    with torch.no_grad():
        exact, padded = Sound()(wave)[0].numpy(), Sound()(functional.pad(wave, (0, 240)))[0].numpy()
    pooled = exact[:50].mean(0)
    clean, leaky = (pooled * np.tanh(np.abs(frames).mean(0)) for frames in (exact, padded))
    moved = of_defect(GlobalMean)["padding"].figures["relative_difference_by_seconds"]
    assert moved["1.01"] == pytest.approx(np.linalg.norm(leaky - clean) / np.linalg.norm(clean), rel=1e-3)
    assert moved["0.31"] > moved["1.01"] > moved["10.01"] > 0
    assert of_defect(Sound)["padding"].figures["relative_difference_by_seconds"]["1.01"] < 1e-6


def test_under_xares_a_neighbour_is_reported_as_a_warning_and_padding_fails_nothing() -> None:
    checks = checked(Sound(), padding="xares")
    assert names(checks, "warning") == {"padding of X-ARES"}
    assert not names(checks, "failed")
    wave = checks["padding of X-ARES"].figures["cosine_by_seconds"]
    assert wave["10"] < wave["2"] < 1


@pytest.mark.parametrize("count", [1, 50])
def test_a_number_of_frames_that_is_always_the_same_is_a_warning(count: int) -> None:
    class Fixed(Sound):
        def forward(self, audio: torch.Tensor) -> Any:
            return super().forward(audio).mean(1, keepdim=True).expand(-1, count, -1).clone()

    checks = checked(Fixed())
    assert checks["hop"].verdict == "warning"
    assert ("one frame" if count == 1 else "50 frames") in checks["hop"].measured


@pytest.mark.parametrize("rounds", ["floor", "ceil"])
@pytest.mark.parametrize("hop", [10, 20, 30, 37, 70, 960])
def test_a_right_hop_is_not_doubted_however_an_encoder_rounds(hop: int, rounds: str) -> None:
    class Rounds(Sound):
        hop_size_in_ms = float(hop)

        def forward(self, audio: torch.Tensor) -> Any:
            count = max(1, audio.shape[1] // hop if rounds == "floor" else -(-audio.shape[1] // hop))
            return torch.ones((len(audio), count, 8))

    check = hop_check(Rounds())
    assert check.verdict == "ok", check
    assert check.figures["measured_hop_seconds"] == pytest.approx(hop / 1000, rel=0.1)


@pytest.mark.parametrize(
    ("declared_ms", "verdict"), [(20.08, "failed"), (20.01, "ok"), (19.99, "ok"), (19.92, "failed")]
)
def test_a_hop_is_wrong_where_it_is_off_by_over_a_frame_in_ten_seconds(declared_ms: float, verdict: str) -> None:
    """500 frames of 20 ms are in ten seconds; 20.08 ms are 2 fewer."""

    class Slightly(Sound):
        hop_size_in_ms = declared_ms

    assert hop_check(Slightly()).verdict == verdict


def hop_check(module: torch.nn.Module) -> Check:
    encoder = build(module)
    recipe = plan_recipe(encoder, encoder.outputs[0], device="cpu", options=ExtractOptions())
    return check_hop(Bench.start(encoder, recipe=recipe, device="cpu", plan=lambda n: [Window(0, n, n)]))


def test_an_encoder_of_fixed_input_is_given_that_and_long_clips_are_cut_for_it() -> None:
    """As extraction may plan: every window is padded to 3 s, and none is longer."""

    class Fixed(Sound):
        hop_size_in_ms = 30.0

        def forward(self, audio: torch.Tensor) -> Any:
            if audio.shape[1] != 3000:
                raise ValueError("expects 3000 samples")
            return super().forward(audio)

        def __call__(self, audio: torch.Tensor) -> Any:
            return super().__call__(audio if audio.shape[1] != 1000 else functional.pad(audio, (0, 2000)))

    encoder = build(Fixed())
    recipe = plan_recipe(encoder, encoder.outputs[0], device="cpu", options=ExtractOptions())

    def plan(n_samples: int) -> list[Window]:
        return [Window(start, min(start + 3000, n_samples), 3000) for start in range(0, n_samples, 3000)]

    found = check_encoder(encoder, recipe=recipe, device="cpu", plan=plan, budget=BRIEF, on_step=lambda _: None)
    checks = {check.name: check for check in found}
    assert names(checks, "failed") == {"hop"}
    assert checks["hop"].figures["measured_hop_seconds"] == pytest.approx(0.02)
    assert checks["10 min of audio"].figures["lengths"][-1]["audio_seconds"] == 600
    assert checks["speed"].figures["batches"][0]["batch_seconds"] == 3


def test_a_check_on_a_bad_encoder_stops_at_a_contract_that_is_broken_on_its_way() -> None:
    class NoNumberForTones(Sound):
        def forward(self, audio: torch.Tensor) -> Any:
            return super().forward(audio) + (0.0 if len(audio) > 1 else float("nan"))

    [contract] = checked(NoNumberForTones()).values()
    assert (contract.name, contract.verdict) == ("contract", "failed")
    assert "NaN" in contract.measured


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
def test_an_encoder_is_checked_in_every_precision(precision: str) -> None:
    encoder = build(Sound())
    recipe = replace(
        plan_recipe(encoder, encoder.outputs[0], device="cpu", options=ExtractOptions()), precision=precision
    )

    def plan(n_samples: int) -> tuple[Window, ...]:
        return plan_windows(n_samples, crop_seconds=None, padding=Padding.parse("0.25"), sample_rate_hz=1000)

    bench = Bench.start(encoder, recipe=recipe, device="cpu", plan=plan)
    with bench.trimmed.at_work():
        assert check_determinism(bench).verdict == "ok"
        assert check_batch_invariance(bench, noise_floor=0.0).verdict == "ok"
        assert check_padding(bench, noise_floor=0.0).verdict == "ok"


def test_figures_are_json_without_nan() -> None:
    for check in of_defect(Sound).values():
        assert json.loads(json.dumps(check.as_json(), allow_nan=False)) == check.as_json()


def test_audio_is_the_same_for_the_same_seed_and_bounded() -> None:
    for seconds in (0.001, 0.31, 65.0):
        wave = tones(seconds, rate_hz=16_000, seed=3)
        assert len(wave) == round(seconds * 16_000)
        assert wave.dtype == np.float32
        assert np.abs(wave).max() <= 0.5 + 1e-6
        np.testing.assert_array_equal(wave, tones.__wrapped__(seconds, rate_hz=16_000, seed=3))
    assert not np.array_equal(tones(1, rate_hz=16_000, seed=3), tones(1, rate_hz=16_000, seed=4))
    assert np.mean(np.abs(clipped(tones(1, rate_hz=16_000, seed=3))) == 1) > 0.5
