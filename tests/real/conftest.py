"""Recorded audio, packed and extracted once: into a folder of the temporary directory, where the next run finds it."""

from __future__ import annotations

import pytest
from corpus import Corpus, make_corpus


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """These tests are run by ``-m real`` alone, whatever other marks are asked for."""
    return None if config.option.markexpr == "real" else True


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """Skips where packages of recordings or the trained weights are missing: `make test-real` installs them."""
    return make_corpus()
