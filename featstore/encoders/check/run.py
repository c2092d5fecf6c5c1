"""Runs all checks of one encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from featstore.encoders.check.batching import (
    check_batch_invariance,
    check_determinism,
    check_padding,
    check_padding_beside_a_longer_clip,
    check_text,
)
from featstore.encoders.check.bench import Bench, Check
from featstore.encoders.check.declarations import (
    check_clipped,
    check_contract,
    check_float16_range,
    check_hop,
    check_short,
    check_silence,
    identity_check,
)
from featstore.encoders.check.length import check_long
from featstore.encoders.check.speed import check_speed
from featstore.encoders.encoder import Encoder
from featstore.errors import EncoderError
from featstore.records import Recipe, Window

__all__ = ["Budget", "EncoderReport", "check_encoder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Time limits in seconds of the two checks whose time depends on the encoder's speed."""

    long_seconds: float = 60.0
    speed_seconds: float = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderReport:
    """The checks of an encoder. ``encoder`` is its name, or its spec if it could not be loaded."""

    encoder: str
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The failed checks."""
        return tuple(each for each in self.checks if each.verdict == "failed")


def check_encoder(
    encoder: Encoder,
    *,
    recipe: Recipe,
    device: str,
    plan: Callable[[int], Sequence[Window]],
    budget: Budget,
    on_step: Callable[[str], None],
) -> tuple[Check, ...]:
    """Measure an encoder under the recipe that extraction would store its embeddings under.

    Parameters
    ----------
    encoder : Encoder
    recipe : Recipe
    device : str
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
    plan : callable
        Takes a number of samples and returns the windows of such a clip, as planned by extraction under the recipe.
    budget : Budget
    on_step : callable
        Called with the name of each step before it starts.

    Returns
    -------
    tuple of Check
        A check in which the encoder raises is failed, with the error. A broken contract is the only check.

    Raises
    ------
    EncoderError
        The encoder cannot run on the device.
    """
    bench = Bench.start(encoder, recipe=recipe, device=device, plan=plan)
    with bench.trimmed.at_work():
        contract = _run("contract", lambda: check_contract(bench), on_step)
        if contract.verdict == "failed":
            return (contract,)
        identity = _run("identity", lambda: identity_check(bench), on_step)
        determinism = _run("determinism", lambda: check_determinism(bench), on_step)
        noise = float(determinism.figures.get("max_relative_difference", 0.0))
        rest: dict[str, Callable[[], Check]] = {
            "batch invariance": lambda: check_batch_invariance(bench, noise_floor=noise),
            "padding": lambda: check_padding(bench, noise_floor=noise),
            "padding of X-ARES": lambda: check_padding_beside_a_longer_clip(bench),
            "hop": lambda: check_hop(bench),
            "10 ms of audio": lambda: check_short(bench),
            "10 min of audio": lambda: check_long(bench, budget_seconds=budget.long_seconds, on_step=on_step),
            "silence": lambda: check_silence(bench),
            "clipped audio": lambda: check_clipped(bench),
            "float16 range": lambda: check_float16_range(bench),
            **({"text": lambda: check_text(bench)} if encoder.facts.takes_text else {}),
            "speed": lambda: check_speed(bench, budget_seconds=budget.speed_seconds, on_step=on_step),
        }
        return (contract, identity, determinism, *(_run(name, check, on_step) for name, check in rest.items()))


def _run(name: str, check: Callable[[], Check], on_step: Callable[[str], None]) -> Check:
    on_step(name)
    try:
        return check()
    except EncoderError as error:
        return Check(
            name=name,
            verdict="failed",
            measured=str(error),
            advice=f"extraction stops at such a clip: fix forward, or remove clips of this kind ({name})",
        )
