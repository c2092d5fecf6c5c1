"""Identity of an mteb model, for the recipe of its embeddings."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any

from featstore.errors import EncoderError
from featstore.records import sha256_of

if TYPE_CHECKING:
    from mteb.models import ModelMeta
    from torch import nn

__all__ = ["identity_of", "precision_of"]


def identity_of(model: Any, meta: ModelMeta) -> dict[str, Any]:
    """Identity of an mteb model: its name, revision and settings, code, weights, and the version of mteb."""
    from featstore.encoders.fingerprint import distribution_of, state_sha256
    from featstore.encoders.source_code import code_sha256, file_of, is_users
    from featstore.encoders.user_code import code_without_loading

    kind = type(model)
    home = sys.modules[kind.__module__]
    if file_of(home) is None:
        raise EncoderError(
            f"{kind.__name__} is not defined in a file, so that its code has no fingerprint: write it to a file and "
            "import it"
        )
    networks = networks_of(model)
    kinds = {kind, *(type(each) for network in networks.values() for each in network.modules())}
    mains = {sys.modules.get(each.__module__) for each in kinds}
    code = [each for main in mains if is_users(main) for each in code_without_loading(main)]
    settings = {
        name: repr(value)
        for name, value in sorted(getattr(model, "__dict__", {}).items())
        if isinstance(value, bool | int | float | str | None) and "device" not in name
    }
    return {
        "class": kind.__qualname__,
        **({} if is_users(home) else {"distribution": distribution_of(home)}),
        **({"code_sha256": code_sha256(code)} if code else {}),
        "mteb": metadata.version("mteb"),
        "model": str(meta.name),
        "revision": str(meta.revision),
        "experiment": None if meta.experiment_kwargs is None else repr(sorted(meta.experiment_kwargs.items())),
        "attributes_sha256": sha256_of(settings),
        "state_sha256": {name: state_sha256(each, all_buffers=True) for name, each in sorted(networks.items())},
        "arguments": {},
    }


def networks_of(model: Any) -> dict[str, nn.Module]:
    """Return the modules that a model exposes: itself, or its attributes."""
    from torch import nn

    if isinstance(model, nn.Module):
        return {"": model}
    return {name: each for name, each in getattr(model, "__dict__", {}).items() if isinstance(each, nn.Module)}


def precision_of(model: Any) -> str:
    """Return the lowest precision of a model's parameters, ``float32`` if it exposes none."""
    dtypes = {str(each.dtype) for network in networks_of(model).values() for each in network.parameters()}
    return next((name for name in ("bfloat16", "float16") if f"torch.{name}" in dtypes), "float32")
