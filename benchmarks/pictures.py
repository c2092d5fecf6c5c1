"""Pictures of the pages that recorded audio gives: ``docs/images/real-report.png`` and ``real-map.png``.

`python -m benchmarks.pictures` packs the tasks of `benchmarks.real`, extracts and scores them with its encoders, and
opens the report and a map in Chromium. It needs what `make test-real` installs, and playwright.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import ROOT
from benchmarks.real import ENCODERS, TASKS, pack_tasks, why_not

IMAGES = ROOT / "docs" / "images"
WIDTH, HEIGHT = 1200, 760


def write_pages(folder: Path) -> dict[str, Path]:
    """Write the report of both tracks, and the map of the languages by the speaker network; pages by name."""
    import featstore

    pack_tasks(folder=str(folder))
    tasks, store = [folder / f"{task}.toml" for task in TASKS], folder / "store.zarr"
    specs = [f"{ROOT / file}:{name}" for name, file in ENCODERS.items()]
    extracted = featstore.extract(tasks, encoder=specs, data=folder / "data", store=store, device="cpu")
    extracted.raise_failures()
    scores = featstore.probe(tasks, store=store) + featstore.retrieve(tasks, store=store)
    scores.raise_failures()
    report = featstore.report(scores, folder / "report.html", title="Recorded audio", store=store)
    map_page = folder / "map.html"
    featstore.explore(store, encoder="SpeakerEncoder", dataset="languages", split="test", out=map_page)
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
    missing = why_not()
    if missing is not None:
        sys.exit(missing)
    with tempfile.TemporaryDirectory(prefix="featstore-pictures-") as folder:
        shoot(write_pages(Path(folder)))


if __name__ == "__main__":
    main()
