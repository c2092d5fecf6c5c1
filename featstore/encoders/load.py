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
    if parsed.scheme in ("hf", "dasheng", "st"):
        found = _of_a_library(parsed, arguments, trust_remote_code=trust_remote_code)
        return _encoder(found, parsed.base, outputs)
    if parsed.scheme in ("onnx", "torchscript"):
        return _encoder(_of_a_model_file(parsed, arguments), parsed.base, outputs)
    if parsed.scheme == "hear":
        return _of_a_hear_module(parsed, arguments, outputs)
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
    """Load a model of transformers, dasheng or sentence-transformers, by the scheme of its spec."""
    if arguments:
        raise EncoderError(f"{spec.scheme}: encoders take no --encoder-arg: got {next(iter(arguments))}")
    if spec.scheme == "hf":
        from featstore.encoders.adapters.transformers import load_hf

        return load_hf(spec.name, trust_remote_code=trust_remote_code)
    if spec.scheme == "st":
        from featstore.encoders.adapters.sentence_transformers import load_sentence_transformer

        return load_sentence_transformer(spec.name, trust_remote_code=trust_remote_code)
    from featstore.encoders.adapters.dasheng import load_dasheng

    return load_dasheng(spec.name)


def _of_a_model_file(spec: EncoderSpec, arguments: Mapping[str, Any]) -> LoadedModel:
    if spec.scheme == "onnx":
        from featstore.encoders.adapters.onnx import load_onnx

        return load_onnx(spec.name, arguments)
    from featstore.encoders.adapters.torchscript import load_torchscript

    return load_torchscript(spec.name, arguments)


def _of_a_hear_module(spec: EncoderSpec, arguments: Mapping[str, Any], outputs: tuple[Output, ...]) -> Encoder:
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
        code = loading.modules(module, main=api)
        return encoder.with_code(code) if code else encoder


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
    module = _file(spec)
    return _pick_class(module, spec.class_name, where=str(Path(spec.name))), module


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


def _class_by_import(spec: EncoderSpec) -> tuple[type[nn.Module], ModuleType]:
    module = _imported(spec)
    return _pick_class(module, spec.class_name, where=spec.name), module


def _imported(spec: EncoderSpec) -> ModuleType:
    try:
        return importlib.import_module(spec.name)
    except (Exception, SystemExit) as error:
        reason = one_line(error, typed=True)
        raise EncoderError(f"module {spec.name} of --encoder {spec.base} could not be imported: {reason}") from error


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
