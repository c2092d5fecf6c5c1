"""Generated pages of the site: pure functions from models, records and commands to Markdown."""

from __future__ import annotations

import json
from pathlib import Path

from docs.made.commands import command_page
from docs.made.documents import documents_page
from docs.made.manifest import manifest_page
from docs.made.notebooks import notebook_page
from docs.made.records import PRINTED, json_page
from docs.made.rules import rules_page
from docs.made.tasks import task_page
from featstore.cli import cli
from featstore.tasks import builtin_tasks

__all__ = ["pages"]


# these pages mention every topic
_LAST_IN_SEARCH = "---\nsearch:\n  boost: 0.2\n---\n\n"


def pages(root: Path) -> dict[str, str]:
    """Generate every page, by its path in the site."""
    notebooks = {
        f"notebooks/{path.stem}.md": notebook_page(json.loads(path.read_text(encoding="utf-8")), name=path.name)
        for path in sorted((root / "docs" / "notebooks").glob("*.ipynb"))
    }
    return {
        "reference/command-line.md": command_page(cli),
        "reference/manifest.md": manifest_page(),
        "reference/tasks.md": task_page(builtin_tasks()),
        "reference/json.md": json_page(PRINTED),
        "reference/documents.md": documents_page(),
        "reference/rules.md": rules_page(),
        "changelog.md": _LAST_IN_SEARCH + (root / "CHANGELOG.md").read_text(encoding="utf-8"),
        "contributing.md": _LAST_IN_SEARCH + (root / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        **notebooks,
    }
