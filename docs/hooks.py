"""What mkdocs calls while it builds the site: pages that are made of the code join those that were written."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from docs.made import pages


def on_files(files: Files, config: MkDocsConfig) -> Files:
    root = Path(config.config_file_path).parent
    for path, text in pages(root).items():
        files.append(File.generated(config, path, content=text))
    return files
