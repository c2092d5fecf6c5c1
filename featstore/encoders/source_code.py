"""Which modules are user code, and the hash of a module by its abstract syntax tree.

User code is every module outside the standard library, ``site-packages`` and featstore.
"""

from __future__ import annotations

import ast
import hashlib
import os
import sysconfig
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

from featstore.records import sha256_of

__all__ = [
    "CodeModule",
    "ast_sha256",
    "code_sha256",
    "file_of",
    "is_user_path",
    "is_users",
    "name_without_path",
    "sha256_of_module",
    "source_of",
]

_PYC_HEADER = 16
_LIBRARIES = {"site-packages", "dist-packages"}
_NOT_USERS = (
    *{os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")},
    str(Path(__file__).resolve().parents[1]),
)


@dataclass(frozen=True, slots=True, order=True)
class CodeModule:
    """One module of user code: its name without a path (empty for the encoder's own), hash of its code, its file."""

    name: str
    sha256: str
    path: str


def code_sha256(modules: Iterable[CodeModule]) -> str:
    """Hash modules by their names and code; file paths and the order of loading do not matter."""
    return sha256_of(sorted({(module.name, module.sha256) for module in modules}))


@lru_cache(maxsize=256)
def ast_sha256(source: bytes) -> str:
    """Hash Python source by its abstract syntax tree, without docstrings and other string statements.

    Comments, formatting and line endings do not affect the hash. Empty fields are skipped, since later versions of
    Python add fields. Text that is not valid Python is hashed as bytes.

    >>> ast_sha256(b"x = 1  # one") == ast_sha256(b"'''Doc.'''; x=1") != ast_sha256(b"x = 1.0")
    True
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return hashlib.sha256(source).hexdigest()
    digest = hashlib.sha256()
    waiting: list[object] = [tree]  # a stack instead of recursion: the tree of a long sum is deep
    while waiting:
        item = waiting.pop()
        if isinstance(item, ast.Constant):
            digest.update(f"<{type(item.value).__name__} {item.value!a}>".encode())
        elif isinstance(item, ast.AST):
            digest.update(f"({type(item).__name__}".encode())
            waiting.append(")")
            for name, value in reversed(list(ast.iter_fields(item))):
                content = _statements(value) if name == "body" and isinstance(value, list) else value
                if content is not None and content != [] and name not in ("type_comment", "type_ignores"):
                    waiting += ["]", content, f" {name}["]
        elif isinstance(item, list):
            waiting += [each for value in reversed(item) for each in (",", value)]
        else:
            digest.update(str(item).encode())
    return digest.hexdigest()


def _statements(body: Sequence[Any]) -> list[Any]:
    """Return a body without string statements, or ``pass`` if nothing else is left."""
    kept = [
        node
        for node in body
        if not (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
    ]
    return kept or [ast.Pass()]


@lru_cache(maxsize=4096)
def is_user_path(path: str) -> bool:
    """Return whether a file is outside the standard library, ``site-packages``, ``dist-packages`` and featstore."""
    for place in (str(Path(path).absolute()), os.path.realpath(path)):
        if _LIBRARIES & set(Path(place).parts) or any(place.startswith(f"{root}{os.sep}") for root in _NOT_USERS):
            return False
    return True


def file_of(module: ModuleType) -> str | None:
    """Return the path of a module's file, as it was imported."""
    name = getattr(module, "__file__", None)
    return name if isinstance(name, str) else None


def is_users(module: object) -> TypeGuard[ModuleType]:
    """Return whether an object is a module of user code."""
    if not isinstance(module, ModuleType):
        return False
    path = file_of(module)
    return path is not None and is_user_path(path)


def source_of(module: ModuleType) -> bytes:
    """Return a module's source if there is one, or else its file: an extension or byte code."""
    path = file_of(module) or ""
    with suppress(OSError):
        return Path(path).read_bytes()
    with suppress(Exception):  # loaders of archives
        return bytes(module.__loader__.get_data(path))  # type: ignore[union-attr]
    return module.__name__.encode()


def name_without_path(module: ModuleType) -> str:
    """Return the trailing parts of a module's name that match its file, since a generated name can contain a path."""
    path = Path(file_of(module) or module.__name__)
    at = [*path.with_suffix("").parts]
    if at[-1] == "__init__":
        at.pop()
    names = module.__name__.split(".")
    n_equal = 0
    while n_equal < min(len(names), len(at)) and names[-1 - n_equal] == at[-1 - n_equal]:
        n_equal += 1
    return ".".join(names[-n_equal:]) if n_equal else at[-1]


def sha256_of_module(module: ModuleType) -> str:
    """Hash a module's code: its syntax tree if it has source, or else the bytes of its file."""
    source, path = source_of(module), file_of(module) or ""
    if path.endswith((".py", ".pyw")):
        return ast_sha256(source)
    return hashlib.sha256(source[_PYC_HEADER:] if path.endswith(".pyc") else source).hexdigest()
