"""Recorded audio, packed and extracted once: into a folder of the temporary directory, where the next run finds it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from corpus import Corpus, Table, make_corpus

TABLE = pytest.StashKey[Table]()
COLUMNS: Mapping[str, str] = {
    "strict": "`probe`",
    "reference": "scikit-learn",
    "knn": "`retrieve`",
    "schedule": "`probe --head linear`",
}


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """These tests are run by ``-m real`` alone, whatever other marks are asked for."""
    return None if config.option.markexpr == "real" else True


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """Skips where packages of recordings or the trained weights are missing: `make test-real` installs them."""
    return make_corpus()


@pytest.fixture(scope="session")
def table(pytestconfig: pytest.Config) -> Table:
    """Scores by task and encoder, printed at the end as docs/protocols.md has them."""
    return pytestconfig.stash.setdefault(TABLE, {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table of scores."""
    rows = config.stash.get(TABLE, {})
    if not rows:
        return
    terminalreporter.section("scores on recorded audio")
    terminalreporter.line(f"| task | encoder | {' | '.join(COLUMNS.values())} |")
    terminalreporter.line("|---" * (2 + len(COLUMNS)) + "|")
    for (task, encoder), row in rows.items():
        cells = [f"{row[name]:.3f}" if name in row else "" for name in COLUMNS]
        terminalreporter.line(f"| {task} | {encoder} | {' | '.join(cells)} |")
