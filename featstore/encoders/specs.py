"""Encoder specs and constructor arguments, as ``--encoder`` takes and stores keep them. Imports no heavy library."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

from featstore.encoders.spec_hints import hint_for
from featstore.errors import EncoderError, UsageError
from featstore.records import canonical_json

__all__ = [
    "BUILT_IN",
    "SCHEMES",
    "EncoderSpec",
    "Layers",
    "Scheme",
    "check_arguments",
    "check_built_in_arguments",
    "looks_secret",
    "parse_layers",
    "parse_spec",
    "spec_with_layer",
]


_MOST_BUILT_IN = 4096

_SECRET_WORDS = {"password", "passwd", "pwd", "passphrase", "secret", "credential", "apikey", "apitoken", "authtoken"}
_KEYS_OF = {"access", "account", "api", "auth", "encryption", "licence", "license", "private", "secret", "signing"}
_TOKENS_OF = _KEYS_OF | {
    "bearer", "client", "gh", "github", "gitlab", "hf", "hub", "huggingface", "id", "login", "refresh", "security",
    "session", "wandb",
}  # fmt: skip
_WHERE_IT_IS = {"env", "environment", "file", "folder", "name", "path", "url", "var", "variable"}
"""Last words of argument names whose values locate a secret and are not secrets."""

_SECRET_VALUE = re.compile(
    r"(?<![A-Za-z0-9])("
    r"sk-(?=[\w-]*\d)[\w-]{16,}"  # OpenAI and compatible services
    r"|hf_[A-Za-z0-9]{16,}"
    r"|(AKIA|ASIA)[0-9A-Z]{12,}"
    r"|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|xox[abeprs]-[\w-]{10,}"
    r"|AIza[\w-]{30,}"
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\."  # a JSON web token
    r")"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|[A-Za-z][A-Za-z0-9+.-]*://[^/?#\s@]*:[^/?#\s@]+@"
    r"|[?&](X-Amz-Signature|X-Goog-Signature|Signature|sig|access_token|api_key)=[^&\s]{8,}",
    re.ASCII,
)


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Check the arguments of any encoder: they are stored as JSON in the recipe, which everyone can read.

    Raises
    ------
    EncoderError
        An argument is not JSON, or looks like a secret.
    """
    for name, value in arguments.items():
        try:
            canonical_json(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise EncoderError(
                f"argument {name} of an encoder must be a JSON value, for it is hashed: {error}"
            ) from error
        if (place := _secret_place(name, value)) is not None:
            raise EncoderError(
                f"argument {place} of an encoder looks like a secret, and arguments are stored in every recipe: let "
                "the encoder read it from an environment variable (os.environ) instead"
            )


def check_built_in_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    """Check the arguments of a built-in encoder, which are sizes and can come from an untrusted store.

    Raises
    ------
    EncoderError
        An argument is not a whole number, or is out of range.
    """
    for argument, value in arguments.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST_BUILT_IN:
            raise EncoderError(
                f"{name} takes whole numbers from 1 to {_MOST_BUILT_IN}: got {argument}={str(value)[:40]!r}"
            )


def looks_secret(name: str, value: object) -> bool:
    """Return whether an argument looks like a password, key or token, by its name or by its value.

    >>> looks_secret("hf_token", "abc"), looks_secret("max_tokens", 512), looks_secret("pad_token", "<pad>")
    (True, False, False)
    """
    if value is None or isinstance(value, bool) or value == "":
        return False
    if isinstance(value, str) and _SECRET_VALUE.search(value):
        return True
    words = [re.sub("(?<!s)s$", "", word.lower()) for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    if not words or words[-1] in _WHERE_IT_IS:
        return False
    pairs = list(zip(["", *words], words, strict=False))
    named = [word in _SECRET_WORDS or (word == "key" and before in _KEYS_OF) for before, word in pairs]
    if not isinstance(value, str):  # a number is a secret only under that exact name: `password_length` is a count
        return named[-1] and not isinstance(value, list | tuple | Mapping)
    # "token" is ambiguous: numbers count tokens, and a string can be a token of a vocabulary
    is_token = words == ["token"] or any(word == "token" and before in _TOKENS_OF for before, word in pairs)
    return any(named) or is_token


def _secret_place(name: str, value: object, *, inside: str = "") -> str | None:
    """Return the dotted path of a secret inside an argument, such as ``options.api_key``, or None."""
    place = f"{inside}.{name}" if inside else name
    if looks_secret(name, value):
        return place
    if isinstance(value, Mapping):
        found = (_secret_place(str(key), each, inside=place) for key, each in value.items())
    elif isinstance(value, list | tuple):
        found = (_secret_place(name, each, inside=inside) for each in value)
    else:
        return None
    return next((each for each in found if each is not None), None)


BUILT_IN = ("logmel", "mfcc")

Scheme = Literal["built-in", "hf", "dasheng", "hear", "onnx", "torchscript", "st", "file", "module"]
SCHEMES: tuple[Scheme, ...] = ("hf", "dasheng", "hear", "onnx", "torchscript", "st")
"""Schemes that are written before a colon."""

Layers = tuple[int | Literal["all"] | None, ...]
"""Hidden states by number, None for the output of the encoder, ``"all"`` for every hidden state."""

_LAYER = "#layer="
_LAYERS = re.compile(r"(?P<first>[0-9]{1,4})(-(?P<last>[0-9]{1,4}))?", re.ASCII)
_FILE = re.compile(r"(?P<path>.+\.py)(:(?P<class_name>\w[\w.]*))?", re.DOTALL)
_MODULE = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<class_name>.+)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSpec:
    """A parsed encoder spec.

    Attributes
    ----------
    scheme : str
        ``file``, ``module`` and ``hear`` import the code that they name. The others run only code of featstore and its
        libraries; a TorchScript file is a program of PyTorch's interpreter.
    name : str
        Built-in name; hub name, size or path; file; module.
    weights : str
        Path that a HEAR module loads; empty for its default.
    class_name : str
        Class or function in the file or module; empty if none is given.
    layer : int or None
        Hidden state; None is the output of the encoder.
    base : str
        The spec without its layer.
    """

    scheme: Scheme
    name: str
    class_name: str = ""
    weights: str = ""
    layer: int | None = None
    base: str


def parse_spec(text: str) -> EncoderSpec:
    """Parse an encoder spec.

    >>> parse_spec("logmel#layer=3").layer, parse_spec("./mine.py:Mel").class_name, parse_spec("hf:a/b").name
    (3, 'Mel', 'a/b')

    Raises
    ------
    UsageError
        ``#layer=`` occurs twice, or its value is not a layer.
    EncoderError
        The text has no known form.
    """
    base, layer = _split_layer(text)
    scheme, colon, where = base.partition(":")
    if colon and scheme == "hear":
        name, _, weights = where.partition("=")
        return EncoderSpec(scheme="hear", name=name, weights=weights, layer=layer, base=base)
    if colon and scheme in SCHEMES:
        return EncoderSpec(scheme=scheme, name=where, layer=layer, base=base)
    if base in BUILT_IN:
        return EncoderSpec(scheme="built-in", name=base, layer=layer, base=base)
    if found := _FILE.fullmatch(base):
        class_name = found["class_name"] or ""
        return EncoderSpec(scheme="file", name=found["path"], class_name=class_name, layer=layer, base=base)
    found = _MODULE.fullmatch(base)
    if found and all(part.isidentifier() for part in found["class_name"].split(".")):
        name, class_name = found["module"], found["class_name"]
        return EncoderSpec(scheme="module", name=name, class_name=class_name, layer=layer, base=base)
    raise EncoderError(
        f"no encoder is called {base!r}: "
        + (
            hint_for(base, built_in=BUILT_IN)
            or f"give a built-in ({', '.join(BUILT_IN)}), hf:NAME_OR_PATH, dasheng:base, hear:MODULE, onnx:FILE, "
            "torchscript:FILE, st:NAME_OR_PATH, ./file.py[:NAME] or package.module:NAME"
        )
    )


def spec_with_layer(base: str, layer: int | None) -> str:
    """Return the spec of a hidden state of an encoder.

    >>> spec_with_layer("hf:a/b", 6), spec_with_layer("logmel", None)
    ('hf:a/b#layer=6', 'logmel')
    """
    return base if layer is None else f"{base}{_LAYER}{layer}"


def parse_layers(layers: str | Iterable[int | str | None]) -> Layers:
    """Read a selection of layers: numbers, ranges, ``last`` (the output of the encoder), ``all`` (every hidden state).

    >>> parse_layers("0-3,6,last"), parse_layers("all,last"), parse_layers([3, None])
    ((0, 1, 2, 3, 6, None), ('all', None), (3, None))

    Raises
    ------
    UsageError
        It is not such a selection, or it has a layer twice.
    """
    parts: list[object] = [part.strip() for part in layers.split(",")] if isinstance(layers, str) else list(layers)
    found = [layer for part in parts for layer in _layers_of(part)]
    twice = next((layer for at, layer in enumerate(found) if layer in found[:at]), "")
    number = next((layer for layer in found if isinstance(layer, int)), None)
    if twice != "":
        raise UsageError(f"layers {layers!r} has {'last' if twice is None else twice} twice: list each layer once")
    if "all" in found and number is not None:
        raise UsageError(f"layers {layers!r} has {number} twice: all is every hidden state by number")
    return tuple(found)


def _layers_of(part: object) -> Sequence[int | Literal["all"] | None]:
    if part is None or part == "last":
        return (None,)
    if part == "all":
        return ("all",)
    if not isinstance(part, bool) and isinstance(part, Integral):
        return (int(part),)
    numbers = _LAYERS.fullmatch(part) if isinstance(part, str) else None
    if numbers is None:
        raise UsageError(f"layers are numbers, ranges, last and all, such as 3,6,9,last or 0-3: got {part!r}")
    first, last = int(numbers["first"]), int(numbers["last"] or numbers["first"])
    if last < first:
        raise UsageError(f"a range of layers counts up: got {part!r}, write {last}-{first}")
    return range(first, last + 1)


def _split_layer(text: str) -> tuple[str, int | None]:
    """Split a spec into the part before ``#layer=K``, and K; ``#layer=last`` is the same as no layer."""
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
