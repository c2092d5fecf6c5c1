"""Convert notebooks to pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def notebook_page(notebook: Mapping[str, Any], *, name: str) -> str:
    """Convert a notebook to Markdown: text, code blocks, and a link to the file under the title."""
    cells = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        cells.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    [first, *rest] = cells
    title, _, introduction = first.partition("\n")
    return "\n\n".join([title, f"[{name}]({name}){{ .md-button download }}", introduction.strip(), *rest]) + "\n"
