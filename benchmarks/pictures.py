"""Pictures of the pages that recorded audio gives: ``docs/images/real-report.png`` and ``real-map.png``.

`python -m benchmarks.pictures` runs the commands of ``docs/real.md`` and opens the report and the map in Chromium;
`python -m benchmarks.pictures FOLDER` opens the ``report.html`` and ``map.html`` of a folder where they were run. It needs
what `make test-real` installs, and playwright.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import ROOT
from benchmarks.real import ENCODERS, why_not

IMAGES = ROOT / "docs" / "images"
WIDTH, HEIGHT = 1200, 760


def write_pages(folder: Path) -> dict[str, Path]:
    """Run the commands of ``docs/real.md``; its pages by the name of their picture."""
    import featstore

    recordings = importlib.import_module("tests.real.recordings")
    store, task = folder / "real.zarr", folder / "real-data" / "klettres.toml"
    specs = ["logmel", f"{ROOT / ENCODERS['SpeakerEncoder']}:SpeakerEncoder"]
    featstore.extract(audio=recordings.KLETTRES, encoder=specs, store=store).raise_failures()
    scores = featstore.probe(task, store=store)
    scores += featstore.retrieve(task, store=store, measure=["knn", "retrieval", "clustering", "pairs"])
    scores.raise_failures()
    report, map_page = folder / "report.html", folder / "map.html"
    featstore.report(scores, report, store=store)
    featstore.explore(store, encoder="SpeakerEncoder", out=map_page)
    return {"real-report": report, "real-map": map_page}


def shoot(pages: dict[str, Path]) -> None:
    """Write ``docs/images/NAME.png`` of each page, as it opens on a desktop."""
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("FEATSTORE_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for name, path in pages.items():
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.goto(path.as_uri())
            page.wait_for_timeout(1000)  # charts are drawn after the page is loaded
            page.screenshot(path=str(IMAGES / f"{name}.png"))
        browser.close()


def main() -> None:
    if len(sys.argv) > 1:
        shoot({f"real-{name}": Path(sys.argv[1]).resolve() / f"{name}.html" for name in ("report", "map")})
        return
    missing = why_not()
    if missing is not None:
        sys.exit(missing)
    with tempfile.TemporaryDirectory(prefix="featstore-pictures-") as folder:
        shoot(write_pages(Path(folder)))


if __name__ == "__main__":
    main()
