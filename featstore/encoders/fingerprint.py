"""Identity of an encoder as hashes of its state, its class and source, and its arguments, without paths or devices."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from featstore.encoders.source_code import file_of, is_user_path, sha256_of_module
from featstore.encoders.user_code import modules_named_in
from featstore.files import expanded, sha256_of_file
from featstore.records import sha256_of

__all__ = [
    "builtin_code_sha256",
    "by_content",
    "distribution_of",
    "earlier_identity",
    "encoder_identity",
    "plain_attributes",
    "source_sha256",
    "state_sha256",
    "tokenizer_sha256",
    "user_identity",
]

_MOST_FILES = 10_000

_FIRST_CODE: Mapping[str, str] = {
    "cae71bc1f7e20aa2195bbd9be24084de14a09cd7d7cc4c27eaf582e6993b4e94": (  # LogMelEncoder, MfccEncoder
        "57fed00a103b9ee80ed29300b81b113a0afb50c15deba6932eac18c4cc966593"
    ),
    "8b34d154af4c06fdb4728488281a88554d9c92728d44da5512d163e3c3c0684b": (  # WaveformEncoder
        "52215c2d791980af2da3243c5a5c939ae6e7bdd9b7d2864da523194232b6997f"
    ),
    "514d3212d841acb5ea2b24a805314f821f5636027fb99e96d05c5b22a12ade62": (  # WhisperEncoder
        "99d4b98645f58893ca3745c6fb7d052d32b7b04893052b739c40f9dd8cc611e1"
    ),
    "0cd272b0a3e52b88f5361a8efc97bc6b9d96a0b22f2f0dd217a0bc1f56353850": (  # PatchEncoder
        "57b8c1be8f3d9bc7a47cca05548798e1c1b777d7fede5d4f9ed1a11e8a189c19"
    ),
    "7aab22bdc2e362f33f9db3eee095ad954c713f55c68ba58cc252e72e3d54bba8": (  # FbankEncoder
        "17137120ff4cdf9f111ec84f594e5ba8e7e48b3371f1ac3a9c0a32d8ddbfc9c5"
    ),
    "f10cc62364f2567993920b522f5cac6b961b6dd43d881afa5ecb0dceb7c742de": (  # ClapEncoder
        "ecaf789057c217cfaf00871d93173605bad40273b688c3287f8b8d688b762bb3"
    ),
    "cbaf0660352b0551cd12ffae4c702f0d786d206cafb3688f80f2b263f0ed777d": (  # OtherEncoder
        "9054a86d6014a54478c7e03d64448c61f5788996bb8ac62a29fb343980b08f59"
    ),
    "5e01fc7d2a13a7a0b2f941fd6b473b2eefd004a64489e533acf1badf017ed772": (  # DashengEncoder
        "8cb2c79b9c264719e7f9d1d2bb0be77224c45ee712e2e6be45d80092876a8dcd"
    ),
    "bf3473d607c53754afabd4b08cac0b98b1d0b525a5cbf272555326b7575e2f99": (  # SentenceTransformerEncoder
        "91f2e69d3cd63827245ab64a7076c476d3eab4c7f8a6ed805ec837c795aac3e0"
    ),
    "1fd2cddb289a302603a7d5be842a8828009cc99288a53a8542665487ffe1bfec": (  # OnnxEncoder
        "a1af6406264564322e0cc5c1814c5e4d058011e6ebb15cb4d9eaba150ad44fe9"
    ),
}
"""`builtin_code_sha256` to `source_sha256` of featstore 0, or of the first version that had the class.

Add a line for an edit that does not change any number.
"""


def state_sha256(module: nn.Module, *, all_buffers: bool = False) -> str:
    """Hash a state dict: name, dtype, shape and bytes of every entry, sorted by name.

    With `all_buffers`, buffers that are not part of the state dict (``persistent=False``) are included.
    """
    digest = hashlib.sha256()
    state = module.state_dict()
    for name, value in sorted(({**dict(module.named_buffers()), **state} if all_buffers else state).items()):
        if isinstance(value, torch.Tensor):
            tensor = value.detach().cpu().contiguous()
            digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        else:  # get_extra_state can return any object
            digest.update(f"{name}|{value!r}|".encode())
    return digest.hexdigest()


def source_sha256(kind: type) -> str:
    """Hash the file that defines a class and the files next to it that it imports, ignoring line endings.

    These are the files in its folder and subfolders that are reachable by the names in an imported module. Other files
    belong to libraries, whose versions are in every part's commit record.
    """
    home = sys.modules.get(kind.__module__)
    texts = set() if home is None else {_source(module) for module in _with_neighbours(home)}
    texts.discard("")
    digests = sorted(hashlib.sha256(text.encode()).hexdigest() for text in texts or {kind.__module__})
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _with_neighbours(home: ModuleType) -> list[ModuleType]:
    """Return a module and the modules of its folder and subfolders that it imports, directly or not."""
    found, waiting = {home: None}, [home]
    while waiting and (folder := _folder_of(home)) is not None:
        for module in modules_named_in(waiting.pop()):
            own = _folder_of(module)
            if module not in found and own is not None and own.is_relative_to(folder):
                found[module] = None
                waiting.append(module)
    return list(found)


def _folder_of(module: ModuleType) -> Path | None:
    path = file_of(module)
    return None if path is None else Path(path).resolve().parent


def _source(module: ModuleType) -> str:
    try:
        text = inspect.getsource(module)
    except (OSError, TypeError):
        return ""
    return "\n".join(line.rstrip() for line in text.splitlines())


def encoder_identity(module: nn.Module, *, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity of an encoder whose class belongs to featstore.

    ``source_sha256`` is the hash of the syntax tree of the class's code. If that is a key of `_FIRST_CODE`, it is the
    hash that featstore 0 computed from the text of the same code, so that stores of featstore 0 stay valid.
    """
    kind = type(module)
    code = builtin_code_sha256(kind)
    return {
        "class": kind.__qualname__,
        "source_sha256": _FIRST_CODE.get(code, code),
        "state_sha256": state_sha256(module),
        "arguments": dict(arguments),
    }


def user_identity(
    module: nn.Module, *, arguments: Mapping[str, Any], factory: Callable[..., object] | None = None
) -> dict[str, Any]:
    """Return the identity of any other encoder, without its code; for an installed one, with its version."""
    kind = type(module)
    makers: list[Callable[..., object]] = [kind] if factory is None else [kind, factory]
    installed = [maker for maker in makers if not is_user_path(file_of(_home_of(maker)) or "")]
    return {
        "class": kind.__qualname__,
        **(
            {"distribution": " ".join(sorted({distribution_of(_home_of(each)) for each in installed}))}
            if installed
            else {}
        ),
        "state_sha256": state_sha256(module, all_buffers=True),
        "arguments": {name: by_content(value) for name, value in arguments.items()},
    }


def _home_of(maker: Callable[..., object]) -> ModuleType:
    return sys.modules[maker.__module__]


def earlier_identity(module: nn.Module, *, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity of a user's encoder as in featstore 0: by the text of the files next to the class's file."""
    return {
        "class": type(module).__qualname__,
        "source_sha256": source_sha256(type(module)),
        "state_sha256": state_sha256(module),
        "arguments": dict(arguments),
    }


def plain_attributes(module: nn.Module) -> dict[str, str]:
    """Return the attributes of a module and its submodules that are numbers, strings, booleans or sequences of them.

    They are settings, such as a stride, a scale or a mode, that the weights do not contain.
    """
    return {
        f"{place}.{name}": repr(value)
        for place, each in module.named_modules()
        for name, value in vars(each).items()
        if name not in _OF_EVERY_MODULE and _is_plain(value)
    }


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def builtin_code_sha256(kind: type) -> str:
    """Hash the code of a featstore class: its module, and the modules of the same folder that it imports."""
    return sha256_of(sorted(map(sha256_of_module, _with_neighbours(sys.modules[kind.__module__]))))


def tokenizer_sha256(tokenizer: Any) -> str:
    """Hash what determines the tokens of a text: class, vocabulary, special tokens, and the rules of a fast tokenizer.

    Padding and truncation are excluded, because each call changes them.
    """
    rules = getattr(tokenizer, "backend_tokenizer", None)
    steps = {} if rules is None else json.loads(rules.to_str())
    return sha256_of(
        {
            "class": type(tokenizer).__name__,
            "vocabulary": tokenizer.get_vocab(),
            "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
            "steps": {name: step for name, step in steps.items() if name not in ("padding", "truncation")},
        }
    )


def distribution_of(home: ModuleType) -> str:
    """Return name and version of the distribution that installed a module, such as ``"dasheng==0.0.9"``.

    If there is no such distribution, return the hash of the module.
    """
    names = metadata.packages_distributions().get(home.__name__.partition(".")[0], ())
    found = [metadata.distribution(name) for name in dict.fromkeys(names)]
    if len(found) > 1:  # a namespace package that several distributions share
        path = Path(file_of(home) or "").resolve()
        own = [
            each
            for each in found
            if any(Path(str(each.locate_file(file))).resolve() == path for file in each.files or ())
        ]
        found = own or found
    named = sorted(f"{each.metadata['Name']}=={each.version}" for each in found)
    return " ".join(named) if named else sha256_of_module(home)


def by_content(value: Any) -> Any:
    """Replace the path of a file or folder in an argument by the path and the hash of its content; see `Recipe`."""
    if isinstance(value, Mapping):
        return {name: by_content(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [by_content(each) for each in value]
    if isinstance(value, str) and value.strip():
        with suppress(OSError, ValueError, RuntimeError):  # not a path, or not readable
            return _path_by_content(value)
    return value


def _path_by_content(value: str) -> Any:
    path = expanded(value)
    if path.is_file():
        return {"file": value, "file_sha256": sha256_of_file(path)}
    if path.is_dir() and (files := _files_in(path)) is not None:
        inside = [[each.relative_to(path).as_posix(), sha256_of_file(each)] for each in files]
        return {"folder": value, "folder_sha256": sha256_of(inside)}
    return value


def _files_in(folder: Path) -> list[Path] | None:
    """Return the files of a folder and its subfolders, sorted and without hidden ones; None if there are too many."""
    found: list[Path] = []
    for path in folder.rglob("*"):
        if not any(part.startswith((".", "__pycache__")) for part in path.relative_to(folder).parts) and path.is_file():
            found.append(path)
        if len(found) > _MOST_FILES:
            return None
    return sorted(found, key=lambda each: each.relative_to(folder).as_posix())
