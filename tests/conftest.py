"""What every test may count on."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from browsing import Browser, launched

# A runner that was started in the background ignores Ctrl-C, and its children would inherit that: tests that interrupt
# a run need what a person at a terminal has.
signal.signal(signal.SIGINT, signal.default_int_handler)

collect_ignore = ["extract/fuzz_target.py"]  # a script: it imports atheris, which is not everywhere


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium; the test is skipped where there is none."""
    with launched(tmp_path_factory.mktemp("pages")) as found:
        yield found
