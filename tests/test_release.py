"""What a release states about itself agrees in every file."""

from __future__ import annotations

import re
import tarfile
import tomllib
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

import featstore

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OF_DEVELOPERS = {"all", "bench", "docs", "lint", "test"}


def test_versions_agree():
    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    changelog = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {PROJECT["version"], featstore.__version__, citation[1], changelog[1]} == {PROJECT["version"]}


def test_the_extra_all_has_every_extra_of_users():
    extras = PROJECT["optional-dependencies"]
    (everything,) = extras["all"]
    assert set(re.findall(r"[a-z]+", everything.partition("[")[2])) == set(extras) - OF_DEVELOPERS


ADDRESS = "https://github.com/someone/featstore"


@pytest.fixture
def on_github(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://github.com")
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/featstore")


def build_sdist(folder: Path) -> Path:
    """Build the source distribution of this checkout, and unpack it."""
    [archive] = SdistBuilder(str(ROOT)).build(directory=str(folder))
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder / f"featstore-{PROJECT['version']}"


def read_wheel(root: Path, folder: Path) -> tuple[set[str], Message]:
    """Build the wheel; return the top level of its files, and its metadata."""
    [path] = WheelBuilder(str(root)).build(directory=str(folder), versions=["standard"])
    with ZipFile(path) as wheel:
        info = f"featstore-{PROJECT['version']}.dist-info"
        return {name.partition("/")[0] for name in wheel.namelist()} - {info}, message_from_bytes(
            wheel.read(f"{info}/METADATA")
        )


def targets(readme: str) -> list[str]:
    return re.findall(r"\]\(([^)]*)\)", readme)


@pytest.mark.usefixtures("on_github")
def test_a_wheel_has_featstore_alone_with_project_urls_and_links_that_an_index_can_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = build_sdist(tmp_path / "sdist")
    monkeypatch.delenv("GITHUB_REPOSITORY")  # an installer builds from the source distribution, anywhere
    top, metadata = read_wheel(source, tmp_path / "wheel")
    assert top == {"featstore"}
    urls = dict(line.split(", ") for line in metadata.get_all("Project-URL"))
    assert urls["Source"] == ADDRESS
    assert set(urls) >= {"Homepage", "Documentation", "Changelog", "Issues"}
    found = targets(str(metadata.get_payload()))
    assert f"{ADDRESS}/blob/main/docs/protocols.md" in found
    assert f"{ADDRESS}/raw/main/docs/images/report.png" in found
    assert all(target.startswith(("https://", "#")) for target in found)


def test_the_readme_of_a_build_without_an_address_has_no_link_that_an_index_cannot_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    monkeypatch.setenv("GIT_DIR", str(tmp_path))  # no repository
    _, metadata = read_wheel(ROOT, tmp_path)
    assert metadata.get_all("Project-URL") is None
    assert all(target.startswith(("https://", "#")) for target in targets(str(metadata.get_payload())))
