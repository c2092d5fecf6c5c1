"""Memory that ran out, as one line, whichever library found out."""

from __future__ import annotations

__all__ = ["told_out_of_memory"]

_ADVICE = "fewer --jobs, a smaller probe.batch_size in the manifest or another machine or device"
_MOST = 200


def told_out_of_memory(error: BaseException) -> str | None:
    """What to print of an error that says that memory ran out; None of any other error."""
    if not isinstance(error, MemoryError):
        if not isinstance(error, RuntimeError):
            return None
        from featstore.encoders.memory import is_out_of_memory

        if not is_out_of_memory(error):
            return None
    said = " ".join(str(error).split())
    shortened = said if len(said) <= _MOST else f"{said[:_MOST]}..."
    return f"there is not enough memory; {_ADVICE} may do{f' ({shortened})' if said else ''}"
