"""Who may import whom: read from the source, so that no import has to happen for it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "featstore"

# from the top down: a module imports from layers below its own, and siblings never import one another
LAYERS = (
    {"__main__"},
    {"cli"},
    {"demo"},
    {"api"},
    {"explore", "integrations"},
    {"report"},
    {"diagnostics"},
    {"extract", "fetch", "probe", "retrieve"},
    {"evaluation"},
    {"encoders"},
    {"store"},
    {"tasks", "metrics", "remote"},
    {"records", "shipped"},
    {"clip_json", "errors", "files", "formatting", "shard_patterns", "system"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# modules that may import a heavy library; a name that ends in * is a package whose modules may all do so
DOORS = {
    "webdataset": {"extract/tar_reader"},
    "soundfile": {"extract/audio"},
    "soxr": {"extract/audio"},
    "miniaudio": {"extract/flac"},
    "zarr": {"store/zarr_io"},
    "torch": {"encoders/*", "probe/*", "store/torch_dataset", "integrations/mteb/*"},
    "sklearn": {"metrics/*", "retrieve/clustering", "retrieve/maeb/*"},
    "faiss": {"retrieve/index"},
    "rich": {"cli/progress", "cli/tables"},
    "matplotlib": {"report/page_charts"},
    "jinja2": {"report/templating"},
    "markupsafe": {"report/templating"},
    "pydantic": {"tasks/*"},
    "click": {"cli/*"},
    "scipy": {"metrics/*", "retrieve/maeb/*"},
    "urllib3": {"fetch/download"},
    "umap": {"explore/map"},
    "transformers": {"encoders/adapters/transformers", "encoders/adapters/sentence_transformers", "probe/text"},
    "dasheng": {"encoders/adapters/dasheng"},
    "mteb": {"integrations/mteb/*"},
    "onnxruntime": {"encoders/adapters/onnx"},
    "sentence_transformers": {"encoders/adapters/sentence_transformers", "integrations/mteb/models"},
    "safetensors": {"extract/embedding_files/safetensors_file"},
    "obstore": {"remote/buckets"},
    "fsspec": {"remote/filesystems"},
    "aiohttp": {"remote/filesystems"},
    "ray": {"extract/ray_workers"},
}
# where numpy, too, is imported only when it is needed: help and manifests must be quick
LIGHT = (
    *("cli/*", "tasks/__init__", "tasks/manifest", "tasks/rules", "tasks/labels", "tasks/builtin"),
    *("clip_json", "errors", "formatting", "records", "shard_patterns", "shipped", "__init__", "__main__"),
)
HEAVY = {*DOORS, "numpy"} - {"click"}


@dataclass(frozen=True)
class Import:
    """One import statement: who, of what, and whether it runs when the module is imported."""

    module: str
    target: str
    at_import: bool
    line: int

    def __str__(self) -> str:
        return f"featstore/{self.module}.py:{self.line} imports {self.target}"


def _last_name(node: ast.expr) -> str:
    """``c`` of ``c`` and of ``a.b.c``."""
    return getattr(node, "attr", "") or getattr(node, "id", "")


def imported_by_name(node: ast.AST) -> str | None:
    """Name of the module in ``importlib.import_module("name")``."""
    if isinstance(node, ast.Call) and node.args and _last_name(node.func) == "import_module":
        [name, *_] = node.args
        return name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else None
    return None


def imports_of(module: str, tree: ast.Module) -> Iterator[Import]:

    def walk(node: ast.AST, *, at_import: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(module, alias.name, at_import, child.lineno)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{module}:{child.lineno} is a relative import"
                for alias in child.names:
                    yield Import(module, f"{child.module}.{alias.name}", at_import, child.lineno)
            elif (named := imported_by_name(child)) is not None:
                yield Import(module, named, at_import, child.lineno)  # type: ignore[attr-defined]
            elif isinstance(child, ast.If) and _last_name(child.test) == "TYPE_CHECKING":
                for statement in child.orelse:
                    yield from walk(statement, at_import=at_import)
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, at_import=at_import and not inside)

    yield from walk(tree, at_import=True)


@cache  # parsed by the worker that runs these tests alone
def modules() -> dict[str, ast.Module]:
    return {
        path.relative_to(PACKAGE).with_suffix("").as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }


@cache
def imports() -> list[Import]:
    return [each for module, tree in modules().items() for each in imports_of(module, tree)]


def subpackage(dotted: str) -> str | None:
    """``featstore.store.reader`` -> ``store``; None for another library and for featstore itself."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "featstore" and len(parts) > 1 and parts[1] in LEVEL else None


def is_in(module: str, places: set[str] | tuple[str, ...]) -> bool:
    return any(module == place or (place.endswith("/*") and module.startswith(place[:-1])) for place in places)


def test_every_module_is_in_a_layer() -> None:
    assert {module.split("/")[0] for module in modules()} - {"__init__"} == set(LEVEL)


def test_imports_point_down_and_siblings_never_import_one_another() -> None:
    wrong = []
    for each in imports():
        here, there = each.module.split("/")[0], subpackage(each.target)
        if here in LEVEL and there is not None and there != here and LEVEL[there] <= LEVEL[here]:
            wrong.append(str(each))
    assert not wrong


def test_of_featstore_itself_only_the_version_is_asked() -> None:
    of_itself = [
        each for each in imports() if each.target.split(".")[0] == "featstore" and subpackage(each.target) is None
    ]
    wrong = [each for each in of_itself if each.target != "featstore.__version__" and each.at_import]
    assert not [str(each) for each in wrong]


@pytest.mark.parametrize("library", sorted(DOORS))
def test_a_heavy_library_has_one_door(library: str) -> None:
    users = {each.module: str(each) for each in imports() if each.target.split(".")[0] == library}
    assert not [statement for module, statement in users.items() if not is_in(module, DOORS[library])]


def at_import_reachable_from(start: str) -> Iterator[Import]:
    """Imports that run, one after the other, when module `start` is imported."""
    seen, waiting = set(), [start]
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        for each in imports():
            if each.module == module and each.at_import:
                yield each
                waiting += modules_run_by(each.target)


def modules_run_by(dotted: str) -> list[str]:
    """Modules of featstore that ``import dotted`` runs: every package on the way, and the module itself."""
    parts = dotted.split(".")
    if parts[0] != "featstore":
        return []
    names = ["__init__"]
    for depth in range(2, len(parts) + 1):
        inner = "/".join(parts[1:depth])
        names += [name for name in (f"{inner}/__init__", inner) if name in modules()]
    return names


@pytest.mark.parametrize("start", ["__init__", "cli/__init__", "tasks/__init__", "records"])
def test_nothing_heavy_is_imported_at_import_time(start: str) -> None:
    light = HEAVY - {"pydantic"} if start.startswith("tasks") else HEAVY
    wrong = [str(each) for each in at_import_reachable_from(start) if each.target.split(".")[0] in light]
    assert not wrong


def test_light_modules_import_numpy_only_when_they_need_it() -> None:
    wrong = [
        each for each in imports() if each.at_import and each.target.startswith("numpy") and is_in(each.module, LIGHT)
    ]
    assert not [str(each) for each in wrong]


def test_outside_its_doors_a_heavy_library_is_never_imported_at_module_level() -> None:
    """A door may, since it is imported lazily itself: by functions, or by modules of which that holds."""
    for start in ("extract/__init__", "store/__init__", "report/__init__", "tasks/splits", "metrics/__init__"):
        heavy = {"torch", "sklearn", "faiss", "zarr", "webdataset", "soundfile", "soxr", "scipy", "rich", "ray"}
        wrong = [each for each in at_import_reachable_from(start) if each.target.split(".")[0] in heavy]
        assert not [str(each) for each in wrong]


def test_only_the_command_line_prints() -> None:
    calls = [
        f"featstore/{module}.py:{node.lineno}"
        for module, tree in modules().items()
        if not module.startswith("cli/")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not calls


def test_what_commands_print_goes_through_what_leaves_nothing_for_a_terminal_to_obey() -> None:
    may = {"cli/options", "cli/completion", "cli/__init__"}  # the last two print a script, and one line with a colour
    echoes = [
        f"featstore/{module}.py:{node.lineno}"
        for module, tree in modules().items()
        if module.startswith("cli/") and module not in may
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"print", "click.echo", "click.secho"}
    ]
    assert not echoes


def test_no_assert_checks_input() -> None:
    asserts = [
        f"featstore/{module}.py:{node.lineno}"
        for module, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
    ]
    assert not asserts


def test_there_is_no_import_cycle() -> None:
    """Not inside packages, not in functions, and not for types alone."""
    module_of = {name.removesuffix("/__init__").replace("/", "."): name for name in modules()}

    def module_at(dotted: str) -> str | None:
        name = dotted.partition(".")[2] if dotted.startswith("featstore.") else None
        return module_of.get(name) if name in module_of else module_of.get((name or "").rpartition(".")[0])

    graph: dict[str, set[str]] = {name: set() for name in modules() if name != "__init__"}
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                targets = {module_at(f"{node.module}.{alias.name}") for alias in node.names}
                graph.get(name, set()).update(each for each in targets if each not in (None, name, "__init__"))
    left = graph
    while True:  # modules that import nothing that is left are on no cycle
        ends = {name for name, imported in left.items() if not imported & left.keys()}
        if not ends:
            break
        left = {name: imported for name, imported in left.items() if name not in ends}
    assert not left
