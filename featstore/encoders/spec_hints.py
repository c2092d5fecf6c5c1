"""What a text that is not an encoder spec may mean: the hints of the error message. Nothing is imported or run."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from featstore.files import expanded

__all__ = ["hint_for"]

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][\w-]*):(?P<rest>.+)", re.DOTALL)
_SCHEME_OF_SUFFIX = {".onnx": "onnx", **dict.fromkeys((".pt", ".pth", ".ts", ".pt2"), "torchscript")}
_SCHEMES = ("hf", "dasheng", "hear", "onnx", "torchscript", "st")
_OTHER_NAMES = {"huggingface": "hf", "transformers": "hf", "hub": "hf", "sentence-transformers": "st"}
_HEAR = {"load_model", "get_scene_embeddings"}
_MOST_CONFIG_BYTES = 1 << 20


def hint_for(text: str, *, built_in: Sequence[str]) -> str | None:
    """Return what a text that has no form of a spec probably means, such as ``did you mean logmel?``; else None."""
    with suppress(OSError, ValueError):  # not a path
        if (found := _of_a_path(text)) is not None:
            return found
    if close := difflib.get_close_matches(text.strip().lower(), built_in, n=1, cutoff=0.7):
        return f"did you mean {close[0]}?"
    if (scheme := _SCHEME.fullmatch(text)) is not None:
        meant = _OTHER_NAMES.get(scheme["scheme"].lower())
        close = [meant] if meant else difflib.get_close_matches(scheme["scheme"].lower(), _SCHEMES, n=1)
        return f"did you mean {close[0]}:{scheme['rest']}?" if close else None
    if _HUB_NAME.fullmatch(text):
        return f"for a transformers model of that name on the Hugging Face hub, write hf:{text}"
    return _of_a_module(text) if _DOTTED.fullmatch(text) else None


def _of_a_path(text: str) -> str | None:
    path = expanded(text)
    if text and path.is_dir():
        return _of_a_folder(text, path)
    scheme = _SCHEME_OF_SUFFIX.get(path.suffix.lower())
    if scheme is not None:
        missing = "" if path.is_file() else f"; there is no file {text}"
        return f"for a model in a file, write {scheme}:{text}{missing}"
    if text and path.with_name(f"{path.name}.py").is_file() and ("/" in text or not _DOTTED.fullmatch(text)):
        return f"did you mean {text}.py?"
    return f"{text} is not a Python file (.py)" if path.is_file() else None


def _of_a_folder(text: str, path: Path) -> str | None:
    if (path / "modules.json").is_file():
        return f"it is a folder of sentence-transformers: write st:{text}"
    config = path / "config.json"
    if config.is_file():
        with config.open("rb") as file, suppress(ValueError, RecursionError):
            content = json.loads(file.read(_MOST_CONFIG_BYTES))
            if isinstance(content, dict) and "model_type" in content:
                return f"it is a folder of a transformers model: write hf:{text}"
        return f"the folder {text} has a config.json without model_type, so it is not a transformers model"
    if (path / "__init__.py").is_file():
        return None
    return f"{text} is a folder without config.json, so it is not a transformers model"


def _of_a_module(text: str) -> str | None:
    path = _source_of(text)
    if path is None:
        return None
    functions, classes = _defined_in(path)
    if functions >= _HEAR:
        return f"it is a module with the HEAR API: write hear:{text}"
    encoders = [name for name in classes if name.endswith("Encoder")] or classes
    return f"it is a module: name a class or function of it, as in {text}:{encoders[0] if encoders else 'NAME'}"


def _source_of(module: str) -> Path | None:
    """File of a module that could be imported. Only the first package is looked up: more would import packages."""
    top, *below = module.split(".")
    places = [Path.cwd()]
    with suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(top)
        if spec is not None and spec.origin is not None and not below and spec.origin.endswith(".py"):
            return Path(spec.origin)
        places += [Path(place).parent for place in (spec.submodule_search_locations or () if spec is not None else ())]
    for place in places:
        for path in (place.joinpath(top, *below).with_suffix(".py"), place.joinpath(top, *below, "__init__.py")):
            if path.is_file():
                return path
    return None


def _defined_in(path: Path) -> tuple[set[str], list[str]]:
    """Names of functions, or of anything imported, and of classes in the body of a module."""
    functions: set[str] = set()
    classes: list[str] = []
    with suppress(OSError, SyntaxError, ValueError, RecursionError):
        for node in _statements(ast.parse(path.read_bytes()).body):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.add(node.name)
            elif isinstance(node, ast.ClassDef):
                classes.append(node.name)
            elif isinstance(node, ast.ImportFrom):
                functions |= {alias.asname or alias.name for alias in node.names}
    return functions, classes


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements(node.body)
