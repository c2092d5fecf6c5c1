"""Encoders: the contract, the built-ins, loading by spec, and running. torch is imported by `load_encoder` only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featstore.encoders.specs import BUILT_IN, EncoderSpec, parse_layers, parse_spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featstore.encoders.encoder import Encoder
    from featstore.encoders.pooling import Pool

__all__ = ["BUILT_IN", "EncoderSpec", "load_encoder", "parse_spec"]


def load_encoder(
    spec: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    layers: str | Sequence[int | str | None] = (),
    pools: Sequence[Pool] = (),
    trust_remote_code: bool = False,
    name: str | None = None,
) -> Encoder:
    """Load the encoder that `spec` names and check that it satisfies the contract.

    Parameters
    ----------
    spec : str
        ``logmel``, ``mfcc``, ``hf:NAME_OR_PATH[#layer=K]``, ``dasheng:base|0.6b|1.2b|PATH[#layer=K]``,
        ``hear:MODULE[=WEIGHTS]``, ``onnx:FILE``, ``torchscript:FILE``, ``st:NAME_OR_PATH``, ``./file.py[:NAME]`` or
        ``package.module:NAME``; NAME is a class, or a function that returns a ``torch.nn.Module``.
    arguments : mapping, optional
        Keyword arguments of the class or function, or what a model's file does not state. Every recipe stores them; one
        that looks like a secret is rejected.
    layers : str or sequence of int, str or None, optional
        Hidden states to keep of each forward pass: numbers, ranges (``"0-3"``), ``"all"`` (every hidden state, without
        ``"last"``), and ``"last"`` or None, the output of the encoder, which is the default.
    pools : sequence of str, optional
        ``mean``, ``max``, ``std``: utterance vectors to keep of each layer; default: ``mean``.
    trust_remote_code : bool
        Run code that comes with a transformers or sentence-transformers model.
    name : str, optional
        Name of the encoder's feature sets. It is not part of its identity.

    Raises
    ------
    EncoderError
        The encoder cannot be loaded.
    EncoderContractError
        The encoder breaks the contract of `featstore.encoders.contract`.
    UsageError
        A layer or pool is listed twice, a layer is given in `spec` and in `layers`, or `name` cannot be used.
    """
    from featstore.encoders.load import load
    from featstore.records import check_encoder_name

    if name is not None:
        check_encoder_name(name)
    return load(
        spec,
        arguments=dict(arguments or {}),
        layers=parse_layers(layers) if layers else (),
        pools=tuple(pools),
        trust_remote_code=trust_remote_code,
    ).named(name)
