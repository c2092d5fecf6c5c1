"""What would have made a long extraction faster, a line for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from featstore.wording import counted

if TYPE_CHECKING:
    from featstore.records import ExtractRecord

__all__ = ["advice"]

_LONG_SECONDS = 20.0


def advice(record: ExtractRecord) -> Iterator[str]:
    """What to do another time about a run whose device was at work for long."""
    if record.seconds["encode"] < _LONG_SECONDS:
        return
    if _gains_from_bfloat16(record):
        yield (
            "this CPU multiplies in bfloat16 about twice as fast: --precision bfloat16 makes a feature set of its own, "
            "as a GPU would by itself"
        )
    if idle := _idle_gpus(record):
        yield f"{counted(idle, 'more GPU')} of this machine had nothing to do: --device all takes every one"


def _gains_from_bfloat16(record: ExtractRecord) -> bool:
    """Whether a CPU could have been faster; float32 is what any CPU has, and so the default."""
    settings = record.settings
    if (settings["device"], settings["precision"], record.bottleneck) != ("cpu", "float32", "encode"):
        return False
    from featstore.encoders import BUILT_IN
    from featstore.encoders.devices import cpu_multiplies_bfloat16

    multiplies = record.encoder not in BUILT_IN  # these are Fourier transforms
    return multiplies and cpu_multiplies_bfloat16()


def _idle_gpus(record: ExtractRecord) -> int:
    """GPUs that were left alone."""
    if record.settings["device"] != "cuda" or record.workers > 1:
        return 0
    from featstore.encoders.devices import idle_gpus

    return idle_gpus(record.settings["device"])
