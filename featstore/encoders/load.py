"""Finds and builds the encoder that a spec names."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from torch import nn

from featstore.encoders.builtin import LogMelEncoder, MfccEncoder
from featstore.encoders.contract import LoadedModel, contract_facts, not_a_module
from featstore.encoders.encoder import Encoder
from featstore.encoders.fingerprint import (
    by_content,
    distribution_of,
    earlier_identity,
    encoder_identity,
    plain_attributes,
    state_sha256,
    user_identity,
)
from featstore.encoders.pooling import Output, Pool
from featstore.encoders.source_code import file_of, is_users
from featstore.encoders.specs import EncoderSpec, Layers, check_arguments, check_built_in_arguments, parse_spec
from featstore.encoders.user_code import ENCODER_FILE, Loading, loading_user_code
from featstore.errors import EncoderContractError, EncoderError, UsageError
from featstore.formatting import one_line
from featstore.records import sha256_of

__all__ = ["load", "load_object"]

_BUILT_IN: Mapping[str, type[nn.Module]] = {"logmel": LogMelEncoder, "mfcc": MfccEncoder}


def load(
    spec: str,
    *,
    arguments: Mapping[str, Any],
    layers: Layers,
    pools: tuple[Pool, ...],
    trust_remote_code: bool,
) -> Encoder:
    """Build an encoder; see `featstore.encoders.load_encoder`."""
    check_arguments(arguments)
    parsed = parse_spec(spec)
    if parsed.layer is not None and layers:
        raise UsageError("a layer is given by #layer= and by --layers: give it once")
    outputs = _Outputs(layers=(parsed.layer,) if parsed.layer is not None else layers, pools=pools)
    if parsed.scheme == "hear":
        return _of_a_hear_module(parsed, arguments, outputs)
    if parsed.scheme not in ("file", "module"):
        return _encoder(_of_a_library(parsed, arguments, trust_remote_code=trust_remote_code), parsed.base, outputs)
    is_file = parsed.scheme == "file"
    # the folder that an encoder can import files from without installation
    with loading_user_code(Path(parsed.name).resolve().parent if is_file else Path.cwd()) as loading:
        home = _file(parsed) if is_file else _imported(parsed)
        maker = _pick(home, parsed.class_name, where=str(Path(parsed.name)))
        return _of_user_code(
            _build(maker, arguments),
            loading,
            main=home,
            spec=parsed.base,
            arguments=arguments,
            outputs=outputs,
            factory=None if isinstance(maker, type) else maker,
        )


def load_object(
    encoder: nn.Module | Callable[..., nn.Module],
    *,
    arguments: Mapping[str, Any],
    layers: Layers,
    pools: tuple[Pool, ...],
) -> Encoder:
    """Build an encoder from a module, or from a class or function that returns one.

    If `encoder` is a class or a function with a name, its arguments are known, and the encoder is the same as the one
    loaded by spec. Every plain attribute of a module, or of the module that a function returns, is part of its
    identity.

    Parameters
    ----------
    encoder : nn.Module or callable
        Set to evaluation mode.
    arguments : mapping
        Arguments of the class or function.
    layers, pools
        See `featstore.encoders.load_encoder`.

    Raises
    ------
    EncoderError
        The encoder cannot be built, or its class is not defined in a file, so that its code has no fingerprint.
    EncoderContractError
        The encoder breaks the contract of `featstore.encoders.contract`.
    """
    check_arguments(arguments)
    outputs = _Outputs(layers=layers, pools=pools)
    with loading_user_code(Path.cwd()) as loading:
        if isinstance(encoder, nn.Module):
            if arguments:
                raise UsageError(f"a module takes no arguments, only a class or function: got {next(iter(arguments))}")
            module = encoder.eval()
        else:
            module = _build(encoder, arguments)
        kind = type(module)
        main = sys.modules[kind.__module__]
        if file_of(main) is None:
            raise EncoderError(
                f"{kind.__name__} is not defined in a file, so that its code has no fingerprint: write it to a file "
                "(%%writefile in a notebook) and import it, or give the file as the spec"
            )
        factory = encoder if not isinstance(encoder, nn.Module) and _is_in_a_module(encoder) else None
        named = factory or kind
        return _of_user_code(
            module,
            loading,
            main=main,
            spec=f"{named.__module__}:{named.__qualname__}",
            arguments=arguments,
            outputs=outputs,
            factory=factory,
            has_own_attributes=encoder is not kind,
        )


def _is_in_a_module(maker: Callable[..., nn.Module]) -> bool:
    """Whether a function can be found by its name in a module, other than the running script, as a spec names it."""
    home = getattr(maker, "__module__", None)
    if home in (None, "__main__") or not inspect.isroutine(maker):
        return False
    found: object = sys.modules.get(home)
    for name in maker.__qualname__.split("."):
        found = getattr(found, name, None)
    return found == maker  # a bound method of a class is another object at each access


def _of_user_code(
    module: nn.Module,
    loading: Loading,
    *,
    main: ModuleType,
    spec: str,
    arguments: Mapping[str, Any],
    outputs: _Outputs,
    factory: Callable[..., nn.Module] | None = None,
    has_own_attributes: bool = False,
) -> Encoder:
    """Build the encoder of a class, or of a function, that a file or an installed package defines.

    Parameters
    ----------
    main : module
        Module of the class; for a function, its own module is used.
    factory : callable, optional
        Function that returned the module.
    has_own_attributes : bool
        Whether the attributes of the module do not follow from its class and `arguments`, so that they are part of its
        identity. With a factory they always are.
    """
    kind = type(module)
    is_own = kind.__module__.partition(".")[0] == "featstore"
    identity = (
        encoder_identity(module, arguments=arguments)
        if is_own
        else user_identity(module, arguments=arguments, factory=factory)
    )
    if factory is not None or has_own_attributes:
        identity["attributes_sha256"] = sha256_of(plain_attributes(module))
    if factory is not None:
        main = sys.modules[factory.__module__]
        identity["factory"] = factory.__qualname__  # a module may have several, whose code has one hash
    found = LoadedModel(
        module=module,
        name=kind.__name__,
        named_by="class",
        identity=identity,
        earlier=None if is_own or "attributes_sha256" in identity else earlier_identity(module, arguments=arguments),
    )
    encoder = _encoder(found, spec, outputs)
    return encoder.with_code(loading.modules(module, main=main))  # its first forward pass can import more modules


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outputs:
    """Layers and pools to keep, as the user gave them: `of` resolves ``all`` when the encoder is loaded."""

    layers: Layers
    pools: tuple[Pool, ...]

    def __post_init__(self) -> None:
        for values, what in ((self.layers, "--layers"), (self.pools, "--pool")):
            if len(set(values)) < len(values):
                raise UsageError(f"{what} lists a value twice: list it once")
        for pool in self.pools:
            if pool not in get_args(Pool):
                raise UsageError(f"--pool takes {', '.join(get_args(Pool))}: got {pool!r}")

    def of(self, found: LoadedModel) -> tuple[Output, ...]:
        layers: list[int | None] = []
        for layer in self.layers or (None,):
            if layer != "all":
                layers.append(layer)
                continue
            facts = contract_facts(found.module)
            if facts.layers is None:
                raise EncoderError(f"{found.name} has no layers to choose from: omit --layers")
            layers += range(facts.layers.count + 1)
        return tuple(Output(layer=layer, pool=pool) for layer in layers for pool in self.pools or ("mean",))


def _encoder(found: LoadedModel, spec: str, outputs: _Outputs) -> Encoder:
    return Encoder(
        module=found.module,
        name=found.name,
        named_by=found.named_by,
        spec=spec,
        identity=found.identity,
        earlier=found.earlier,
        text_identity=found.text_identity,
        outputs=outputs.of(found),
    )


def _of_a_library(spec: EncoderSpec, arguments: Mapping[str, Any], *, trust_remote_code: bool) -> LoadedModel:
    """Load a built-in encoder, a model in a file, or a model of another library, by the scheme of the spec."""
    if spec.scheme == "built-in":
        check_built_in_arguments(spec.name, arguments)
        module = _build(_BUILT_IN[spec.name], arguments)
        identity = encoder_identity(module, arguments=arguments)
        return LoadedModel(module=module, name=spec.name, named_by="class", identity=identity)
    if spec.scheme == "onnx":
        from featstore.encoders.adapters.onnx import load_onnx

        return load_onnx(spec.name, arguments)
    if spec.scheme == "torchscript":
        from featstore.encoders.adapters.torchscript import load_torchscript

        return load_torchscript(spec.name, arguments)
    if arguments:
        raise EncoderError(f"{spec.scheme}: encoders take no --encoder-arg: got {next(iter(arguments))}")
    if spec.scheme == "hf":
        from featstore.encoders.adapters.transformers import load_hf

        return load_hf(spec.name, trust_remote_code=trust_remote_code)
    if spec.scheme == "st":
        from featstore.encoders.adapters.sentence_transformers import load_sentence_transformer

        return load_sentence_transformer(spec.name, trust_remote_code=trust_remote_code)
    if spec.scheme == "dasheng":
        from featstore.encoders.adapters.dasheng import load_dasheng

        return load_dasheng(spec.name)
    raise AssertionError(f"scheme {spec.scheme} has no loader")


def _of_a_hear_module(spec: EncoderSpec, arguments: Mapping[str, Any], outputs: _Outputs) -> Encoder:
    """Load a HEAR module, which is user code: by name or from a file."""
    from featstore.encoders.adapters.hear import build_hear

    is_file = spec.name.endswith(".py")
    with loading_user_code(Path(spec.name).resolve().parent if is_file else Path.cwd()) as loading:
        api = _file(spec) if is_file else _imported(spec)
        module = build_hear(api, where=spec.name, weights=spec.weights, arguments=arguments).eval()
        identity = {
            **encoder_identity(module, arguments=arguments),
            "model": type(module.model).__qualname__,
            "state_sha256": state_sha256(module, all_buffers=True),
            **({} if is_users(api) else {"distribution": distribution_of(api)}),
            **({"weights": by_content(spec.weights)} if spec.weights else {}),
        }
        name = Path(spec.name).stem if is_file else spec.name
        found = LoadedModel(module=module, name=name, named_by="place", identity=identity)
        encoder = _encoder(found, spec.base, outputs)
        return encoder.with_code(loading.modules(module, main=api))


def _build(maker: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    """Call a class or function, and return the module in evaluation mode."""
    name = getattr(maker, "__name__", type(maker).__name__)
    _check_call(maker, name, arguments)
    try:
        module: object = maker(**arguments)  # a user's code may return anything
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise EncoderError(f"{name}({given}) could not be built: {one_line(error, typed=True)}") from error
    if isinstance(module, nn.Module):
        return module.eval()
    if isinstance(maker, type):
        raise EncoderContractError(not_a_module(module))
    if isinstance(module, type):
        raise EncoderContractError(f"{name} must return a torch.nn.Module: it returned the class {module.__name__}")
    what = "None" if module is None else f"an object of the class {type(module).__name__}"
    raise EncoderContractError(f"{name} must return a torch.nn.Module: it returned {what}")


def _check_call(maker: Callable[..., nn.Module], name: str, arguments: Mapping[str, Any]) -> None:
    """Check the names of the arguments of a class or function, if its signature is known."""
    try:
        parameters = inspect.signature(maker).parameters
    except (TypeError, ValueError):
        return
    by_name = [each for each in parameters.values() if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    known = [each.name for each in by_name]
    lacking = [each.name for each in by_name if each.default is each.empty and each.name not in arguments]
    unknown = [] if any(each.kind is each.VAR_KEYWORD for each in parameters.values()) else [*arguments]
    unknown = [each for each in unknown if each not in known]
    if lacking and isinstance(maker, type) and not issubclass(maker, nn.Module):
        raise EncoderContractError(not_a_module(maker))
    if unknown:
        raise EncoderError(
            f"{name} has no argument {unknown[0]}: it takes {', '.join(known) or 'none'}{_meant(unknown[0], known)}"
        )
    if lacking:
        values = " ".join(f"--encoder-arg {each}=VALUE" for each in lacking)
        raise EncoderError(f"{name} cannot be called without {', '.join(lacking)}: give {values}, or add a default")


def _meant(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _file(spec: EncoderSpec) -> ModuleType:
    path = Path(spec.name)
    if not path.is_file():
        raise EncoderError(f"there is no encoder file {path}: check the path in --encoder {spec.base}")
    module_name = f"{ENCODER_FILE}{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}"
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    if module_spec is None or module_spec.loader is None:
        raise EncoderError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_name] = module
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise EncoderError(f"{path} could not be imported: {one_line(error, typed=True)}") from error
    return module


def _imported(spec: EncoderSpec) -> ModuleType:
    try:
        return importlib.import_module(spec.name)
    except (Exception, SystemExit) as error:
        reason = one_line(error, typed=True)
        raise EncoderError(f"module {spec.name} of --encoder {spec.base} could not be imported: {reason}") from error


def _pick(module: ModuleType, wanted: str, *, where: str) -> Callable[..., nn.Module]:
    """Return the requested class or function, or else the only class whose name ends in Encoder, the rule of X-ARES."""
    if wanted:
        return _by_name(module, wanted, where=where)
    classes = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__name__.endswith("Encoder")]
    own = [kind for kind in classes if kind.__module__ == module.__name__] or classes
    if len(own) == 1:
        return own[0]
    if not own:
        names = _makers(module)
        example = f"{where}:{names[0] if names else 'MyModel'}"
        has = f" (it has {', '.join(names)})" if names else ""
        raise EncoderError(
            f"{where} has no class whose name ends in Encoder: name a class or function, as in {example}{has}"
        )
    names = sorted(kind.__name__ for kind in own)
    raise EncoderError(
        f"{where} has several encoders: name one, as in {where}:{own[0].__name__} (it has {', '.join(names)})"
    )


def _by_name(module: ModuleType, wanted: str, *, where: str) -> Callable[..., nn.Module]:
    found: Any = module
    try:
        for name in wanted.split("."):
            found = getattr(found, name)
    except AttributeError:
        names = _makers(module)
        has = f": it has {', '.join(names)}" if names else ""
        raise EncoderError(f"{where} has no class or function {wanted}{has}{_meant(wanted, names)}") from None
    if isinstance(found, type) or inspect.isroutine(found):
        return found
    raise EncoderError(
        f"{wanted} of {where} is an object of the class {type(found).__name__}: name a class, or a function that "
        "returns the encoder"
    )


def _makers(module: ModuleType) -> list[str]:
    """Names of the modules' own classes that may be encoders, and of its public functions."""
    return [
        name
        for name, each in vars(module).items()
        if getattr(each, "__module__", None) == module.__name__
        and not name.startswith("_")
        and (inspect.isfunction(each) or (isinstance(each, type) and issubclass(each, nn.Module)))
    ]
