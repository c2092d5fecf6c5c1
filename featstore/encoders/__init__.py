"""Encoders: the contract, the built-ins, loading by spec, and running. torch stays behind `load_encoder`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from featstore.encoders.running import Encoder

__all__ = ["BUILT_IN", "load_encoder"]

BUILT_IN = ("logmel", "mfcc")


def load_encoder(spec: str, *, arguments: Mapping[str, Any] | None = None) -> Encoder:
    """Load the encoder that `spec` names and check that it keeps the contract.

    Parameters
    ----------
    spec : str
        ``logmel``, ``mfcc``, ``./file.py[:Class]`` or ``package.module:Class``.
    arguments : mapping, optional
        Keyword arguments of the class.

    Raises
    ------
    EncoderError
        It cannot be loaded.
    EncoderContractError
        It does not keep the contract of `featstore.encoders.contract`.
    """
    from featstore.encoders.loading import load

    return load(spec, arguments=dict(arguments or {}))
