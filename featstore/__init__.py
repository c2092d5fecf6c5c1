"""featstore: run an audio encoder once, keep its embeddings, answer every later question from the store.

The public functions are those of `featstore.api`, each imported when it is first used. Six of them share their name
with a package: `explore`, `extract`, `fetch`, `probe`, `report` and `retrieve`. These packages are callable:
``featstore.probe(...)`` is `featstore.api.probe`, and ``from featstore.probe import probe_task`` still imports from the
package.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featstore.api import (
        Extracted,
        Imported,
        Scores,
        audit,
        check,
        compact,
        compare,
        copy,
        diff,
        explore,
        explore_server,
        export,
        extract,
        fetch,
        gc,
        health,
        import_embeddings,
        inspect,
        knn_arrays,
        load_encoder,
        measure_arrays,
        open,
        pack,
        probe,
        probe_arrays,
        query,
        rename,
        report,
        retrieve,
        verify,
    )

__version__ = "0.2.0"
__all__ = [
    "Extracted",
    "Imported",
    "Scores",
    "__version__",
    "audit",
    "check",
    "compact",
    "compare",
    "copy",
    "diff",
    "explore",
    "explore_server",
    "export",
    "extract",
    "fetch",
    "gc",
    "health",
    "import_embeddings",
    "inspect",
    "knn_arrays",
    "load_encoder",
    "measure_arrays",
    "open",
    "pack",
    "probe",
    "probe_arrays",
    "query",
    "rename",
    "report",
    "retrieve",
    "verify",
]

_PACKAGES = ("explore", "extract", "fetch", "probe", "report", "retrieve")


class _CallablePackage(ModuleType):
    """A package that is called like the function of its name in `featstore.api`."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return _public(self.__name__.rpartition(".")[2])(*arguments, **options)

    @property
    def __signature__(self) -> Any:  # shown by help() and notebooks
        import inspect

        return inspect.signature(_public(self.__name__.rpartition(".")[2]))


class _Featstore(ModuleType):
    """The type of this package: however ``featstore.probe`` is imported, it is bound as a callable package."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _PACKAGES and type(value) is ModuleType:
            value.__class__ = _CallablePackage
        super().__setattr__(name, value)


def _public(name: str) -> Any:
    return getattr(importlib.import_module("featstore.api"), name)


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"featstore.{name}")
    if name in __all__:
        return _public(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


sys.modules[__name__].__class__ = _Featstore
