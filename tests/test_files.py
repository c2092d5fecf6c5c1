"""Files of the user's are replaced in one step: on a full disk the old content is untouched and nothing is left."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import handmade
from featstore import files
from featstore.files import replacing, sweep_leftovers, temporary_folder, write_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_text_replaces_what_was_there_with_its_permissions_and_through_links(tmp_path: Path) -> None:
    page, link = tmp_path / "page.html", tmp_path / "link.html"
    page.write_text("old")
    page.chmod(0o640)
    link.symlink_to(page)
    write_whole(link, "nëw \ud800")
    assert page.read_text(encoding="utf-8") == "nëw \\ud800"
    assert stat.S_IMODE(page.stat().st_mode) == 0o640
    assert link.is_symlink()
    assert names(tmp_path) == ["link.html", "page.html"]


def test_a_new_file_has_the_permissions_that_any_new_file_has(tmp_path: Path) -> None:
    (tmp_path / "theirs").touch()
    write_whole(tmp_path / "ours", b"x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


@pytest.mark.parametrize("step", ["write", "fsync", "rename"])
def test_on_a_full_disk_the_old_content_is_untouched_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    page = tmp_path / "page.html"
    page.write_text("old")
    if step == "write":
        monkeypatch.setattr(Path, "write_bytes", full)
    elif step == "fsync":
        monkeypatch.setattr(files.os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=r"No space left") as caught:
        write_whole(page, "new")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(page))
    monkeypatch.undo()
    assert page.read_text() == "old"
    assert names(tmp_path) == ["page.html"]


KILLED = """
import os, signal, sys
from pathlib import Path
from featstore.files import replacing, temporary_folder

with temporary_folder(Path(sys.argv[1])) as folder, replacing(Path(sys.argv[1])) as file:
    (folder / "inside").write_text("half")
    file.write_text("half")
    print("here", flush=True)
    sys.stdin.read() if sys.argv[2] == "live" else os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_goes_with_the_next_write_and_what_a_live_one_writes_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("old")
    mine = tmp_path / ".page.html.mine"
    mine.touch()
    command = [sys.executable, "-c", KILLED, str(page)]
    killed = subprocess.run([*command, "killed"], env=handmade.environment(), capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    left = set(names(tmp_path)) - {"page.html", mine.name}
    assert len(left) == 2
    live = subprocess.Popen(
        [*command, "live"], env=handmade.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert live.stdout is not None
    live.stdout.readline()
    writing = set(names(tmp_path)) - left - {"page.html", mine.name}
    assert len(writing) == 2
    write_whole(page, "new")
    assert set(names(tmp_path)) == {"page.html", mine.name} | writing
    live.communicate()
    assert live.returncode == 0
    assert names(tmp_path) == [mine.name, "page.html"]
    assert page.read_text() == "half"  # the last that was done counts


def test_many_writers_of_one_file_leave_one_of_their_contents(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    failed: list[OSError] = []

    def writes(number: int) -> None:
        try:
            for _ in range(20):
                write_whole(page, str(number) * 10_000)
                sweep_leftovers(page)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=writes, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(set(page.read_text())) == 1
    assert names(tmp_path) == ["page.html"]


def test_what_cannot_be_replaced_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_whole(pipe, "through")
    reader.join()
    assert read == [b"through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    with replacing(Path("/dev/stdout")) as given:
        assert given == Path("/dev/stdout")


def test_a_name_as_long_as_names_can_be_is_written(tmp_path: Path) -> None:
    page = tmp_path / ("ä" * 127)
    write_whole(page, "new")
    assert page.read_text() == "new"
    with temporary_folder(page) as folder:
        assert folder.is_dir()
    assert len(names(tmp_path)) == 1


def test_a_missing_folder_is_reported_by_the_name_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write_whole(tmp_path / "nowhere" / "page.html", "new")
    assert caught.value.filename == str(tmp_path / "nowhere" / "page.html")


# --- as a user meets it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["write", "fsync"])
def test_pages_are_one_line_on_a_full_disk_and_the_old_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    import numpy as np

    from featstore.cli import main
    from featstore.report import write_score
    from mapped import Stored, write_set
    from scored import scored

    write_set(tmp_path / "s", [Stored(f"c{at}", np.eye(6)[at], {"word": "w"}) for at in range(6)])
    write_score(scored("words", "mel", 0.5), tmp_path / "r")
    store, results = ["--store", str(tmp_path / "s")], ["--results", str(tmp_path / "r")]
    commands = [
        ["report", *results, "--format", "html"],
        ["report", *results, "--format", "table"],
        ["report", *results, "--format", "json"],
        ["explore", *store],
        ["export", *store, "--format", "npz", "--force"],
    ]
    pages = tmp_path / "pages"
    pages.mkdir()
    for number, command in enumerate(commands):
        page = pages / f"{number}.html"
        page.write_text("old")
        out = [str(page)] if command[0] == "export" else ["--out", str(page)]
        with monkeypatch.context() as patch:
            if broken == "fsync":
                patch.setattr(os, "fsync", full)
            else:
                patch.setattr(Path, "write_bytes", full)
                patch.setattr("zipfile.ZipFile.open", full)
            with pytest.raises(SystemExit) as done:
                main([command[0], *out, *command[1:]])
        assert done.value.code == 1
        [line] = capsys.readouterr().err.splitlines()
        assert str(page) in line
        assert page.read_text() == "old"
        assert names(pages) == sorted(f"{at}.html" for at in range(number + 1))
