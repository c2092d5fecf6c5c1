"""The user modules that an encoder consists of.

User code is every module outside the standard library, ``site-packages`` and featstore, wherever its file is and
however it was imported. `loading_user_code` records which module bodies run, and what each of them imports, while an
encoder is imported, constructed and run for the first time. The imports of each body are kept for the lifetime of the
process, so that an encoder whose helpers are already loaded has the same hash as in a fresh process.

Modules that the application imported earlier were not recorded. Their dependencies are read from their import
statements and from the names that they contain.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from featstore.encoders.source_code import (
    CodeModule,
    ast_sha256,
    file_of,
    is_user_path,
    is_users,
    name_without_path,
    sha256_of_module,
    source_of,
)

__all__ = [
    "ENCODER_FILE",
    "Loading",
    "code_without_loading",
    "loading_user_code",
    "modules_named_in",
]

ENCODER_FILE = "featstore_encoder_"
"""Prefix of the names of modules that are loaded from encoder files."""

# --- recording --------------------------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class _Body:
    """A module whose body ran while an encoder was loaded, and the user modules that it needs.

    ``found`` is True if an ordinary import of this name finds this file.
    """

    module: ModuleType
    name: str
    path: str
    source: bytes
    sha256: str
    found: bool
    needs: dict[ModuleType, None] = field(default_factory=dict)


_bodies: dict[ModuleType, _Body] = {}  # of the process
_lock = threading.RLock()
_active: Loading | None = None


class Loading:
    """Record of the imports while one encoder is loaded; `parent` is that of the encoder whose constructor loads it."""

    def __init__(self, parent: Loading | None) -> None:
        self._parent = parent
        self._thread = threading.get_ident()  # imports in other threads do not belong to this encoder
        self._running: list[_Body] = []
        self._needs: dict[ModuleType, None] = {}

    def modules(self, encoder: nn.Module, *, main: ModuleType) -> tuple[CodeModule, ...]:
        """Return the user modules that `encoder`, whose class is in `main`, consists of, sorted by name."""
        kinds = {kind for module in encoder.modules() for kind in type(module).__mro__}
        return _code([main, *self._needs, *(sys.modules.get(kind.__module__) for kind in kinds)], main=main)

    def note(self, module: ModuleType) -> None:
        """Record that the running body, or else the encoder, needs this module."""
        if self._parent is not None:
            self._parent.note(module)
        if is_users(module):
            needs = self._running[-1].needs if self._running else self._needs
            needs[module] = None

    def note_import(self, name: str, items: Iterable[str]) -> None:
        """Record the import of a module by name, and of `items` from it."""
        parts = name.split(".")
        top = sys.modules.get(parts[0])
        if threading.get_ident() != self._thread or top is None or (file_of(top) and not is_users(top)):
            return
        names = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        for each in (*names, *(f"{name}.{item}" for item in items)):
            if each in sys.modules:
                self.note(sys.modules[each])

    def run(self, loader: SourceFileLoader, module: ModuleType, usual: Callable[..., None]) -> None:
        """Run the body of a module; for user code, record what it needs."""
        path = str(loader.path)
        if threading.get_ident() != self._thread or not is_user_path(path):
            usual(loader, module)
            return
        source = loader.get_data(path)
        body = _Body(module, module.__name__, path, source, ast_sha256(source), _is_found(module.__name__, path))
        self._running.append(body)
        try:
            if _changes_code(type(loader)):
                usual(loader, module)
            else:  # run the text that is hashed: byte code is matched by size and time, which an edit can leave equal
                exec(loader.source_to_code(source, path), module.__dict__)
        finally:
            self._running.pop()
        body.needs |= dict.fromkeys(filter(is_users, modules_named_in(module)))
        _bodies[module] = body
        self.note(module)


def _changes_code(kind: type[SourceFileLoader]) -> bool:
    """Return whether a loader changes the code that it loads, as import hooks of type checkers do."""
    return kind.get_code is not SourceFileLoader.get_code


def modules_named_in(module: ModuleType) -> Iterator[ModuleType]:
    """Yield the modules that a module's names refer to, or that define their values."""
    for value in tuple(vars(module).values()):
        found = value
        if not isinstance(value, ModuleType):
            found = None
            with suppress(Exception):  # a name can refer to any object
                found = sys.modules.get(str(getattr(value, "__module__", None)))
        if isinstance(found, ModuleType) and found is not module:
            yield found


def code_without_loading(main: ModuleType) -> tuple[CodeModule, ...]:
    """Return the user modules that an already imported module consists of."""
    return _code([main], main=main)


def _code(roots: Iterable[object], *, main: ModuleType) -> tuple[CodeModule, ...]:
    return tuple(
        sorted(
            CodeModule(
                name="" if module is main else name_without_path(module),
                sha256=_bodies[module].sha256 if module in _bodies else sha256_of_module(module),
                path=file_of(module) or "",
            )
            for module in _reached(roots)
        )
    )


def _reached(roots: Iterable[object]) -> list[ModuleType]:
    """Return the user modules among `roots` and those that they need, including their parent packages."""
    found: dict[ModuleType, None] = {}
    waiting = list(roots)
    while waiting:
        module = waiting.pop()
        if not is_users(module) or module in found:
            continue
        found[module] = None
        waiting += _bodies[module].needs if module in _bodies else _needs_by_source(module)
        parents = module.__name__.split(".")[:-1]
        waiting += [sys.modules.get(".".join(parents[:depth])) for depth in range(1, len(parents) + 1)]
    return list(found)


def _needs_by_source(module: ModuleType) -> Iterator[object]:
    """Yield what an unrecorded module needs, by its import statements outside functions and by its names."""
    package = module.__name__ if hasattr(module, "__path__") else module.__name__.rpartition(".")[0]
    with suppress(SyntaxError, ValueError):
        for name, items in _imports(ast.parse(source_of(module)).body, package):
            parts = name.split(".")
            names = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
            for each in (*names, *(f"{name}.{item}" for item in items)):
                yield sys.modules.get(each)
    for named in modules_named_in(module):
        if not named.__name__.startswith(f"{module.__name__}."):  # an import of a submodule sets this name
            yield named


def _imports(body: Iterable[ast.AST], package: str) -> Iterator[tuple[str, list[str]]]:
    for node in body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = _absolute(node.module or "", package, node.level)
            yield name, [alias.name for alias in node.names]
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from _imports(node.orelse, package)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports(ast.iter_child_nodes(node), package)


def _absolute(name: str, package: str, level: int) -> str:
    """Resolve the name of a module that is imported relative to a package, by `level` dots.

    >>> _absolute("sub", "a.b", 1), _absolute("", "a.b", 2), _absolute("c", "a.b", 0)
    ('a.b.sub', 'a', 'c')
    """
    above = package.split(".") if level else []
    return ".".join([*above[: len(above) - level + 1], *([name] if name else [])])


# --- import hooks -----------------------------------------------------------------------------------------------------


@contextmanager
def loading_user_code(folder: Path) -> Iterator[Loading]:
    """Context that records imports, and in which the files of `folder` can be imported without installation.

    Modules of earlier encoders are loaded again if their files have changed, or if their names now refer to other
    files: an encoder is defined by its files at the time of loading.
    """
    global _active  # noqa: PLW0603 - imports are global to the process
    with _lock:
        before, importable = _active, str(folder)
        sys.path.insert(0, importable)
        try:
            if before is None:
                importlib.invalidate_caches()
                _forget_changed_modules()
            with _imports_recorded() if before is None else nullcontext():
                _active = Loading(before)
                yield _active
        finally:
            _active = before
            if importable in sys.path:
                sys.path.remove(importable)


_import_statement = builtins.__import__
_import_module = importlib.import_module
_exec_module = SourceFileLoader.exec_module


def _importing(
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    module = _import_statement(name, globals, locals, fromlist or (), level)
    if _active is not None:
        where = globals or {}
        package = where.get("__package__") or str(where.get("__name__", "")).rpartition(".")[0]
        _active.note_import(_absolute(name, package, level), fromlist or ())
    return module


def _importing_module(name: str, package: str | None = None) -> ModuleType:
    module = _import_module(name, package)  # a module can keep a reference to this function after the hook is removed
    if _active is not None:
        _active.note_import(module.__name__, ())
    return module


def _executing_module(loader: SourceFileLoader, module: ModuleType) -> None:
    if _active is None:
        _exec_module(loader, module)
    else:
        _active.run(loader, module, _exec_module)


@contextmanager
def _imports_recorded() -> Iterator[None]:
    global _import_statement  # noqa: PLW0603 - another tool may have replaced it before
    _import_statement = builtins.__import__
    builtins.__import__ = _importing
    importlib.import_module = _importing_module
    SourceFileLoader.exec_module = _executing_module  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        builtins.__import__ = _import_statement
        importlib.import_module = _import_module
        SourceFileLoader.exec_module = _exec_module  # type: ignore[method-assign]


def _forget_changed_modules() -> None:
    """Forget all recorded modules if one has changed, since they refer to each other, and always encoder files."""
    for body in [body for body in _bodies.values() if body.name.startswith(ENCODER_FILE)]:
        del _bodies[body.module]
    if any(_has_changed(body) for body in _bodies.values()):
        for body in _bodies.values():
            if sys.modules.get(body.name) is body.module:
                del sys.modules[body.name]
        _bodies.clear()


def _has_changed(body: _Body) -> bool:
    try:
        if Path(body.path).read_bytes() != body.source:
            return True
    except OSError:
        return True
    return body.found and sys.modules.get(body.name) is body.module and not _is_found(body.name, body.path)


def _is_found(name: str, path: str) -> bool:
    """Return whether an import of the first part of a name finds the file or the package that contains it."""
    top, real = name.partition(".")[0], os.path.realpath(path)
    for finder in sys.meta_path:
        spec = finder.find_spec(top, None, None) if hasattr(finder, "find_spec") else None
        if spec is not None:
            folders = [os.path.realpath(place) for place in spec.submodule_search_locations or ()]
            is_it = spec.origin is not None and os.path.realpath(spec.origin) == real
            return is_it or any(real.startswith(f"{folder}{os.sep}") for folder in folders)
    return False
