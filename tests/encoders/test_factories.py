"""Encoders that a function makes, by spec and in Python; installed and editable packages; calls that cannot work."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from featstore.encoders import load_encoder
from featstore.encoders.load import load_object
from featstore.encoders.specs import parse_spec
from featstore.errors import EncoderContractError, EncoderError
from handmade import XARES_ENCODER, environment

FACTORIES = f"""{XARES_ENCODER}

def make(width: int = 5, scale: float = 1.0):
    module = MyEncoder(width)
    module.scale = scale
    return module


def make_another(width: int = 5, scale: float = 1.0):
    return make(width, scale)


class Maker:
    @classmethod
    def default(cls):
        return make(7)


def positional(width, depth=1): return MyEncoder(width)
def makes_a_class(): return MyEncoder
def makes_nothing(): pass
def makes_a_dict(): return {{}}
ready = MyEncoder()
number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "factories_idt.py"
    path.write_text(FACTORIES)
    return path


@pytest.fixture
def imported(file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(file.parent))
    yield __import__("factories_idt")
    sys.modules.pop("factories_idt", None)


def identity_of(maker: Callable[..., Any], **arguments: object) -> dict[str, Any]:
    return dict(load_object(maker, arguments=arguments, layers=(), pools=()).identity)


def why(spec: str, kind: type[EncoderError] = EncoderError, **arguments: object) -> str:
    with pytest.raises(kind) as caught:
        load_encoder(spec, arguments=arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_function_makes_the_same_encoder_by_file_by_module_and_in_python(file: Path, imported: ModuleType) -> None:
    by_file = load_encoder(f"{file}:make", arguments={"width": 6})
    assert (by_file.name, by_file.facts.dim, by_file.identity["factory"]) == ("MyEncoder", 6, "make")
    assert by_file.identity["arguments"] == {"width": 6}
    assert dict(by_file.identity) == dict(load_encoder("factories_idt:make", arguments={"width": 6}).identity)
    assert dict(by_file.identity) == identity_of(imported.make, width=6)
    in_python = load_object(imported.make, arguments={}, layers=(), pools=())
    assert parse_spec(in_python.spec).class_name == "make"
    assert dict(load_encoder(in_python.spec).identity) == dict(in_python.identity)


def test_a_class_method_is_named_with_dots(file: Path, imported: ModuleType) -> None:
    by_file = load_encoder(f"{file}:Maker.default")
    assert by_file.facts.dim == 7
    assert dict(by_file.identity) == identity_of(imported.Maker.default)


def test_functions_of_one_file_arguments_attributes_and_code_tell_encoders_apart(
    file: Path, imported: ModuleType
) -> None:
    first = load_encoder(f"{file}:make")
    others = {
        "factory": load_encoder(f"{file}:make_another"),
        "attributes_sha256": load_encoder(f"{file}:make", arguments={"scale": 2.0}),
    }
    for field, other in others.items():
        assert first.identity[field] != other.identity[field]
    file.write_text(FACTORIES.replace("MyEncoder(width)\n    module", "MyEncoder(width, 0)\n    module"))
    assert load_encoder(f"{file}:make").identity["code_sha256"] != first.identity["code_sha256"]
    file.write_text(FACTORIES + "\n# a comment")
    assert dict(load_encoder(f"{file}:make").identity) == dict(first.identity)


def test_a_partial_and_a_lambda_have_the_identity_of_the_module_that_they_return(imported: ModuleType) -> None:
    found = [identity_of(maker) for maker in (partial(imported.make, 6), lambda: imported.make(6))]
    assert found[0] == found[1]
    assert "factory" not in found[0]
    assert found[0]["attributes_sha256"] == identity_of(imported.make, width=6)["attributes_sha256"]


def test_the_file_of_a_function_counts_where_its_class_is_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "class_idt.py").write_text(XARES_ENCODER)
    maker = tmp_path / "maker_idt.py"
    maker.write_text("from class_idt import MyEncoder\n\ndef make():\n    return MyEncoder(4)\n")
    encoder = load_encoder(f"{maker}:make")
    assert [module.name for module in encoder.code] == ["", "class_idt"]
    maker.write_text(maker.read_text().replace("return", "GAIN = 2\n    return"))
    assert load_encoder(f"{maker}:make").identity["code_sha256"] != encoder.identity["code_sha256"]


# --- calls that cannot work -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "kind", "parts"),
    [
        ("positional", {}, EncoderError, ["--encoder-arg width=VALUE"]),
        ("make", {"widht": 3}, EncoderError, ["widht", "width, scale", "mean width"]),
        ("MyEncoder", {"widht": 3}, EncoderError, ["widht", "width, seed", "mean width"]),
        ("makes_a_class", {}, EncoderContractError, ["torch.nn.Module", "MyEncoder"]),
        ("makes_nothing", {}, EncoderContractError, ["torch.nn.Module", "None"]),
        ("makes_a_dict", {}, EncoderContractError, ["torch.nn.Module", "dict"]),
        ("ready", {}, EncoderError, ["MyEncoder", "function"]),
        ("number", {}, EncoderError, ["int", "function"]),
        ("maek", {}, EncoderError, ["maek", "mean make"]),
        ("Maker.nothing", {}, EncoderError, ["Maker.nothing"]),
    ],
)
def test_what_is_no_maker_of_an_encoder_is_one_line(
    name: str, arguments: dict[str, object], kind: type[EncoderError], parts: list[str], file: Path
) -> None:
    message = why(f"{file}:{name}", kind, **arguments)
    assert all(part in message for part in parts)


PLAIN = """
import dataclasses

class Plain:
    def __init__(self):
        self.sample_rate = 8000
    def encode(self, audio): return audio

@dataclasses.dataclass
class Config:
    rate: int
    dim: int = 3
"""


def test_a_class_that_is_no_module_is_reported_with_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(PLAIN)
    message = why(f"{tmp_path}/plain.py:Plain", EncoderContractError)
    assert all(part in message for part in ("torch.nn.Module", "sample_rate = 8000", "encode()", "hop_size_in_ms"))
    message = why(f"{tmp_path}/plain.py:Config", EncoderContractError)
    assert all(part in message for part in ("torch.nn.Module", "dim = 3"))


# --- installed packages -----------------------------------------------------------------------------------------------

CHILD = """
import json, site, sys
for place in sys.argv[1].split(":"):
    site.addsitedir(place)  # as Python does at its start: it reads .pth files
from featstore.encoders import load_encoder
print(json.dumps({spec: dict(load_encoder(spec).identity) for spec in sys.argv[2:]}))
"""


def identities(site_packages: Path, *specs: str) -> dict[str, dict[str, Any]]:
    """Identities in a fresh process that has another folder of installed packages."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(site_packages), *specs],
        check=False, env=environment(), capture_output=True, text=True, cwd=site_packages.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def about(site_packages: Path, version: str, *files: str) -> None:
    """What an installer writes about the distribution `pkg-idt`."""
    folder = site_packages / "pkg_idt-1.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: pkg-idt\nVersion: {version}\n")
    (folder / "top_level.txt").write_text("pkg_idt\n")
    (folder / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def write_package(folder: Path) -> Path:
    (folder / "pkg_idt").mkdir(parents=True)
    (folder / "pkg_idt/__init__.py").touch()
    (folder / "pkg_idt/const.py").write_text("WIDTH = 5\n")
    source = FACTORIES.replace("import torch", "import torch\nfrom pkg_idt.const import WIDTH", 1)
    (folder / "pkg_idt/enc.py").write_text(source.replace("width: int = 5", "width: int = WIDTH"))
    return folder


SPECS = ("pkg_idt.enc:make", "pkg_idt.enc:MyEncoder")

FINDER = """
import sys
from importlib.machinery import PathFinder

class Finder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return PathFinder.find_spec(name, [{source!r}], target) if name == "pkg_idt" else None

def install():
    sys.meta_path.append(Finder)
"""


@pytest.mark.parametrize("layout", ["path", pytest.param("finder", marks=pytest.mark.slow)])
def test_code_of_an_editable_package_is_hashed_as_user_code(layout: str, tmp_path: Path) -> None:
    source, site_packages = write_package(tmp_path / "work/src"), tmp_path / "site-packages"
    about(site_packages, "1.0", "__editable__.pkg_idt.pth")
    if layout == "path":
        (site_packages / "__editable__.pkg_idt.pth").write_text(f"{source}\n")
    else:
        (site_packages / "finder_idt.py").write_text(FINDER.format(source=str(source)))
        (site_packages / "__editable__.pkg_idt.pth").write_text("import finder_idt; finder_idt.install()\n")
    before = identities(site_packages, *SPECS)
    assert all("distribution" not in each and "code_sha256" in each for each in before.values())
    about(site_packages, "1.1", "__editable__.pkg_idt.pth")
    (source / "pkg_idt/const.py").write_text("WIDTH = 5 + 0\n")
    after = identities(site_packages, *SPECS)
    for spec in SPECS:
        assert after[spec].pop("code_sha256") != before[spec].pop("code_sha256")
    assert after == before  # the version of its distribution does not count


@pytest.mark.slow
def test_installed_code_counts_by_distribution_and_version(tmp_path: Path) -> None:
    site_packages = write_package(tmp_path / "site-packages")
    about(site_packages, "1.0", "pkg_idt/__init__.py", "pkg_idt/enc.py")
    before = identities(site_packages, *SPECS)
    assert {each["distribution"] for each in before.values()} == {"pkg-idt==1.0"}
    assert not any("code_sha256" in each for each in before.values())
    (site_packages / "pkg_idt/const.py").write_text("WIDTH = 5 + 0\n")
    assert identities(site_packages, *SPECS) == before
    about(site_packages, "1.1", "pkg_idt/__init__.py", "pkg_idt/enc.py")
    assert {each["distribution"] for each in identities(site_packages, *SPECS).values()} == {"pkg-idt==1.1"}


def test_an_installed_function_that_returns_a_class_of_another_package_counts_too(tmp_path: Path) -> None:
    site_packages = tmp_path / "site-packages"
    site_packages.mkdir()
    source = """
from torch.nn import Unflatten

def make():
    module = Unflatten(1, (-1, 320))
    module.sampling_rate, module.output_dim, module.hop_size_in_ms = 16000, 320, 20
    return module
"""
    (site_packages / "pkg_idt.py").write_text(source)
    about(site_packages, "1.0", "pkg_idt.py")
    [identity] = identities(site_packages, "pkg_idt:make").values()
    assert identity["class"] == "Unflatten"
    assert [each.split("==")[0] for each in identity["distribution"].split()] == ["pkg-idt", "torch"]
