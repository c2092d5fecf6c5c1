"""Finds and builds the encoder that a spec names."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from torch import nn

from featstore.encoders.builtin import LogMelEncoder, MfccEncoder
from featstore.encoders.contract import LoadedModel
from featstore.encoders.encoder import Encoder
from featstore.encoders.fingerprint import earlier_identity, encoder_identity, plain_attributes, user_identity
from featstore.encoders.pooling import Output, Pool
from featstore.encoders.source_code import file_of
from featstore.encoders.specs import EncoderSpec, check_arguments, check_built_in_arguments, parse_spec
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
    layers: tuple[int | None, ...],
    pools: tuple[Pool, ...],
    trust_remote_code: bool,
) -> Encoder:
    """Build an encoder; see `featstore.encoders.load_encoder`."""
    check_arguments(arguments)
    parsed = parse_spec(spec)
    if parsed.layer is not None and layers:
        raise UsageError("a layer is given by #layer= and by --layers: give it once")
    outputs = _outputs((parsed.layer,) if parsed.layer is not None else layers, pools)
    if parsed.scheme in ("hf", "dasheng"):
        found = _of_a_library(parsed, arguments, trust_remote_code=trust_remote_code)
        return _encoder(found, parsed.base, outputs)
    if parsed.scheme == "built-in":
        return _encoder(_of_a_built_in(parsed, arguments), parsed.base, outputs)
    with loading_user_code(_folder_of(parsed)) as loading:
        kind, main = _class_in_file(parsed) if parsed.scheme == "file" else _class_by_import(parsed)
        module = _build(kind, arguments)
        return _of_a_class(module, loading, main=main, spec=parsed.base, arguments=arguments, outputs=outputs)


def load_object(
    encoder: nn.Module | Callable[..., nn.Module],
    *,
    arguments: Mapping[str, Any],
    layers: tuple[int | None, ...],
    pools: tuple[Pool, ...],
) -> Encoder:
    """Build an encoder from a module, or from a class or function that returns one.

    If `encoder` is a class, its arguments are known, and the encoder is the same as the one loaded by spec. If it is a
    module or a function, every plain attribute of the module is part of its identity instead.

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
    outputs = _outputs(layers, pools)
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
        return _of_a_class(
            module,
            loading,
            main=main,
            spec=f"{kind.__module__}:{kind.__qualname__}",
            arguments=arguments,
            outputs=outputs,
            attributes_sha256=None if encoder is kind else sha256_of(plain_attributes(module)),
        )


def _of_a_class(
    module: nn.Module,
    loading: Loading,
    *,
    main: ModuleType,
    spec: str,
    arguments: Mapping[str, Any],
    outputs: tuple[Output, ...],
    attributes_sha256: str | None = None,
) -> Encoder:
    """Build the encoder of a class that a file or an installed package, the module `main`, defines."""
    kind = type(module)
    is_own = kind.__module__.partition(".")[0] == "featstore"
    identity = (encoder_identity if is_own else user_identity)(module, arguments=arguments)
    found = LoadedModel(
        module=module,
        name=kind.__name__,
        named_by="class",
        identity=identity if attributes_sha256 is None else {**identity, "attributes_sha256": attributes_sha256},
        earlier=None if is_own or attributes_sha256 is not None else earlier_identity(module, arguments=arguments),
    )
    encoder = _encoder(found, spec, outputs)
    code = loading.modules(module, main=main)  # after its first forward pass, which can import more modules
    return encoder.with_code(code) if code else encoder


def _encoder(found: LoadedModel, spec: str, outputs: tuple[Output, ...]) -> Encoder:
    return Encoder(
        module=found.module,
        name=found.name,
        named_by=found.named_by,
        spec=spec,
        identity=found.identity,
        earlier=found.earlier,
        outputs=outputs,
    )


def _outputs(layers: tuple[int | None, ...], pools: tuple[Pool, ...]) -> tuple[Output, ...]:
    unknown = [pool for pool in pools if pool not in get_args(Pool)]
    if unknown:
        raise UsageError(f"--pool takes {', '.join(get_args(Pool))}: got {unknown[0]!r}")
    outputs = tuple(Output(layer=layer, pool=pool) for layer in layers or (None,) for pool in pools or ("mean",))
    if len(set(outputs)) < len(outputs):
        raise UsageError("--layers or --pool lists a value twice: list it once")
    return outputs


def _of_a_library(spec: EncoderSpec, arguments: Mapping[str, Any], *, trust_remote_code: bool) -> LoadedModel:
    """Load a model of transformers or dasheng, by the scheme of its spec."""
    if arguments:
        raise EncoderError(f"{spec.scheme}: encoders take no --encoder-arg: got {next(iter(arguments))}")
    if spec.scheme == "hf":
        from featstore.encoders.adapters.transformers import load_hf

        return load_hf(spec.name, trust_remote_code=trust_remote_code)
    from featstore.encoders.adapters.dasheng import load_dasheng

    return load_dasheng(spec.name)


def _of_a_built_in(spec: EncoderSpec, arguments: Mapping[str, Any]) -> LoadedModel:
    check_built_in_arguments(spec.name, arguments)
    module = _build(_BUILT_IN[spec.name], arguments)
    identity = encoder_identity(module, arguments=arguments)
    return LoadedModel(module=module, name=spec.name, named_by="class", identity=identity)


def _build(kind: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    name = getattr(kind, "__name__", type(kind).__name__)
    try:
        module = kind(**arguments)
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise EncoderError(f"{name}({given}) could not be built: {one_line(error, typed=True)}") from error
    if not isinstance(module, nn.Module):
        raise EncoderContractError(f"an encoder must be a torch.nn.Module: {name} is not one")
    return module.eval()


def _folder_of(spec: EncoderSpec) -> Path:
    """Return the folder that an encoder can import files from without installation."""
    return Path(spec.name).resolve().parent if spec.scheme == "file" else Path.cwd()


def _class_in_file(spec: EncoderSpec) -> tuple[type[nn.Module], ModuleType]:
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
    return _pick_class(module, spec.class_name, where=str(path)), module


def _class_by_import(spec: EncoderSpec) -> tuple[type[nn.Module], ModuleType]:
    name = spec.name
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        reason = one_line(error, typed=True)
        raise EncoderError(f"module {name} of --encoder {spec.base} could not be imported: {reason}") from error
    return _pick_class(module, spec.class_name, where=name), module


def _pick_class(module: ModuleType, wanted: str, *, where: str) -> type[nn.Module]:
    """Return the requested class, or else the only class whose name ends in Encoder, the rule of X-ARES."""
    if wanted:
        kind = getattr(module, wanted, None)
        if not isinstance(kind, type):
            raise EncoderError(f"{where} has no class {wanted}")
        return kind
    classes = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__name__.endswith("Encoder")]
    own = [kind for kind in classes if kind.__module__ == module.__name__] or classes
    if len(own) == 1:
        return own[0]
    if not own:
        raise EncoderError(f"{where} has no class whose name ends in Encoder: name one, as in {where}:MyModel")
    names = ", ".join(sorted(kind.__name__ for kind in own))
    raise EncoderError(f"{where} has several encoders: name one, as in {where}:{own[0].__name__} (it has {names})")
