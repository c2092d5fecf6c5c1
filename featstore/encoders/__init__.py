"""Encoders: the contract, the built-ins, loading by spec, and running. torch stays behind `load_encoder`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featstore.encoders.specs import BUILT_IN, EncoderSpec, parse_spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featstore.encoders.encoder import Encoder
    from featstore.encoders.pooling import Pool

__all__ = ["BUILT_IN", "EncoderSpec", "load_encoder", "parse_spec"]


def load_encoder(
    spec: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    layers: Sequence[int | None] = (),
    pools: Sequence[Pool] = (),
    trust_remote_code: bool = False,
) -> Encoder:
    """Load the encoder that `spec` names and check that it keeps the contract.

    Parameters
    ----------
    spec : str
        ``logmel``, ``mfcc``, ``hf:NAME_OR_PATH[#layer=K]``, ``dasheng:base|0.6b|1.2b|PATH[#layer=K]``,
        ``./file.py[:Class]`` or ``package.module:Class``.
    arguments : mapping, optional
        Keyword arguments of the class. They are stored in every recipe: one that looks like a secret is refused.
    layers : sequence of int or None, optional
        Hidden states to keep of each forward pass; None is what the encoder returns, and the default.
    pools : sequence of str, optional
        ``mean``, ``max``, ``std``: utterance vectors to keep of each layer; the default is the mean.
    trust_remote_code : bool
        Run code that comes with a transformers model.

    Raises
    ------
    EncoderError
        It cannot be loaded.
    EncoderContractError
        It does not keep the contract of `featstore.encoders.contract`.
    UsageError
        A layer or pool is there twice, or a layer is given in `spec` and in `layers`.
    """
    from featstore.encoders.load import load

    return load(
        spec,
        arguments=dict(arguments or {}),
        layers=tuple(layers),
        pools=tuple(pools),
        trust_remote_code=trust_remote_code,
    )
