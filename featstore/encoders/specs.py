"""Encoder specs: the one parser of what ``--encoder`` takes and a store keeps. It imports nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from featstore.errors import EncoderError, UsageError

__all__ = ["BUILT_IN", "EncoderSpec", "Scheme", "parse_spec", "spec_with_layer"]

BUILT_IN = ("logmel", "mfcc")

Scheme = Literal["built-in", "hf", "dasheng", "file", "module"]

_LAYER = "#layer="
_FILE = re.compile(r"(?P<path>.+\.py)(:(?P<class_name>\w+))?", re.DOTALL)
_MODULE = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<class_name>.+)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSpec:
    """An encoder spec, parsed.

    Attributes
    ----------
    scheme : str
        ``built-in``, ``hf`` and ``dasheng`` run no code but that of featstore and its libraries; ``file`` and
        ``module`` import what they name.
    name : str
        Built-in name; hub name, size or path; file; module.
    class_name : str
        Class in the file or module; empty where none is given.
    layer : int or None
        Hidden state; None is what the encoder returns.
    base : str
        The spec without its layer.
    """

    scheme: Scheme
    name: str
    class_name: str = ""
    layer: int | None = None
    base: str

    @property
    def runs_code(self) -> bool:
        """Whether loading it imports code that it names."""
        return self.scheme in ("file", "module")


def parse_spec(text: str) -> EncoderSpec:
    """Parse an encoder spec.

    >>> parse_spec("logmel#layer=3").layer, parse_spec("./mine.py:Mel").class_name, parse_spec("hf:a/b").name
    (3, 'Mel', 'a/b')

    Raises
    ------
    UsageError
        ``#layer=`` is there twice, or does not name a layer.
    EncoderError
        It is not of any known form.
    """
    base, layer = _split_layer(text)
    scheme, colon, where = base.partition(":")
    if colon and scheme == "hf":
        return EncoderSpec(scheme="hf", name=where, layer=layer, base=base)
    if colon and scheme == "dasheng":
        return EncoderSpec(scheme="dasheng", name=where, layer=layer, base=base)
    if base in BUILT_IN:
        return EncoderSpec(scheme="built-in", name=base, layer=layer, base=base)
    if found := _FILE.fullmatch(base):
        class_name = found["class_name"] or ""
        return EncoderSpec(scheme="file", name=found["path"], class_name=class_name, layer=layer, base=base)
    if found := _MODULE.fullmatch(base):
        name, class_name = found["module"], found["class_name"]
        return EncoderSpec(scheme="module", name=name, class_name=class_name, layer=layer, base=base)
    raise EncoderError(
        f"no encoder is called {base!r}: give a built-in ({', '.join(BUILT_IN)}), hf:NAME_OR_PATH, dasheng:base, "
        "./file.py[:Class] or package.module:Class"
    )


def spec_with_layer(base: str, layer: int | None) -> str:
    """Spec of a hidden state of an encoder.

    >>> spec_with_layer("hf:a/b", 6), spec_with_layer("logmel", None)
    ('hf:a/b#layer=6', 'logmel')
    """
    return base if layer is None else f"{base}{_LAYER}{layer}"


def _split_layer(text: str) -> tuple[str, int | None]:
    """A spec without its ``#layer=K``, and K; ``#layer=last`` is the spec itself."""
    base, *given = text.split(_LAYER)
    if not given:
        return base, None
    if len(given) > 1:
        raise UsageError(f"a spec has one {_LAYER}: got {len(given)} in --encoder {text}")
    [number] = given
    if number == "last":
        return base, None
    if not re.fullmatch(r"[0-9]{1,4}", number):
        raise UsageError(f"{_LAYER} takes a number from 0 on, or last: got {number!r} in --encoder {text}")
    return base, int(number)
