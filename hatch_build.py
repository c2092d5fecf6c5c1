"""Adds the project URLs and a README with absolute links, from the address of the repository that is built.

The address is that of GitHub Actions, or else of the git remote ``origin`` on a public forge. A build that knows no
address has no project URLs, and its README has plain text in place of relative links, which package indexes cannot
follow.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_FORGES = ("github.com", "gitlab.com", "codeberg.org")
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>(?!https?://|#|mailto:)[^)\s]+)\)")


class RepositoryMetadataHook(MetadataHookInterface):
    """Fills the dynamic fields ``readme`` and ``urls``."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the two fields, in place."""
        root = Path(self.root)
        address = repository_address(root)
        text = readme_for_index((root / "README.md").read_text(encoding="utf-8"), address)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = {} if address is None else project_urls(address)


def repository_address(root: Path) -> str | None:
    """Return the ``https`` address of the repository, without credentials, or None if it is not known."""
    server, name = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
    if server and name:
        return f"{server}/{name}"
    try:
        command = ["git", "-C", str(root), "remote", "get-url", "origin"]
        origin = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    forges = "|".join(map(re.escape, _FORGES))
    found = re.fullmatch(rf"(?:https://(?:[^@/]*@)?|(?:ssh://)?git@)({forges})[:/](.+?)(?:\.git)?/?", origin)
    return None if found is None else f"https://{found[1]}/{found[2]}"


def project_urls(address: str) -> dict[str, str]:
    """Return the project URLs of a repository."""
    return {
        "Homepage": address,
        "Documentation": f"{address}/blob/main/docs/index.md",
        "Changelog": f"{address}/blob/main/CHANGELOG.md",
        "Issues": f"{address}/issues",
        "Source": address,
    }


def readme_for_index(text: str, address: str | None) -> str:
    """Make relative links absolute; without an address, keep their text and drop images.

    >>> readme_for_index("[Store](docs/store.md), ![Map](docs/map.png)", "https://github.com/a/b")
    '[Store](https://github.com/a/b/blob/main/docs/store.md), ![Map](https://github.com/a/b/raw/main/docs/map.png)'
    >>> readme_for_index("[Store](docs/store.md), ![Map](docs/map.png)", None)
    'Store, '
    """

    def replaced(link: re.Match[str]) -> str:
        if address is None:
            return "" if link["image"] else link["text"]
        view = "raw" if link["image"] else "blob"
        return f"{link['image']}[{link['text']}]({address}/{view}/main/{link['target']})"

    return _LINK.sub(replaced, text)
