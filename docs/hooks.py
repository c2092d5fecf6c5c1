"""Hooks of mkdocs that add the generated pages to the site."""

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
