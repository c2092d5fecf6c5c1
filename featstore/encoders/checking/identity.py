"""What an encoder's fingerprint counts: which code, which weights, which arguments."""

from __future__ import annotations

from featstore.encoders.checking.bench import Bench
from featstore.encoders.checking.records import Check
from featstore.records import sha256_of

__all__ = ["identity_check"]


def identity_check(bench: Bench) -> Check:
    """List what decides the fingerprint, so that a user can see what counts."""
    identity, code = bench.recipe.encoder_identity, bench.encoder.code
    if code:
        names = ", ".join(module.name or "its own file" for module in code)
        made_of = f"{len(code)} modules of code ({names})" if len(code) > 1 else "its own file of code"
    else:
        made_of = identity.get("distribution") or "featstore's own code"
    n_weights = len(bench.encoder.module.state_dict())
    arguments = ", ".join(sorted(identity.get("arguments", {}))) or "no arguments"
    return Check(
        name="identity",
        verdict="ok",
        measured=f"the fingerprint is of {made_of}; {n_weights} weights and buffers; {arguments}",
        figures={
            "modules": [{"name": each.name, "sha256": each.sha256, "path": each.path} for each in code],
            "identity": dict(identity),
            "identity_sha256": sha256_of(identity),
        },
    )
