"""A shell completes commands, options, tasks and encoders, and imports nothing heavy for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from featstore.shipped import manifest_files
from handmade import Run, environment
from installed import path_with_featstore

HEAVY = ["numpy", "torch", "zarr", "rich", "pydantic"]


def shell(name: str, script: str, tmp_path: Path) -> str:
    """What a script of that shell prints, `featstore` being this checkout."""
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed")
    child = subprocess.run(
        [program, "-c", script],
        cwd=tmp_path,
        env=environment(PATH=path_with_featstore(tmp_path / "bin"), HOME=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


COMPLETED = {
    "featstore ret": ["retrieve"],
    "featstore probe es": ["esc50"],
    "featstore probe esc50 gtzan_g": ["gtzan_genre"],
    "featstore tasks voxc": ["voxceleb1"],
    "featstore extract esc50 --encoder log": ["logmel"],
    "featstore check m": ["mfcc"],
    "featstore probe esc50 --protocol x": ["xares"],
    "featstore extract --prec": ["--precision"],
    "featstore completion f": ["fish"],
    "featstore probe ./mine": [],
}


def test_bash_completes(tmp_path: Path) -> None:
    """As bash does it: the function that the script registers is called with the words of the line."""
    script = (
        'eval "$(featstore completion bash)"\n'
        "compopt() { :; }  # of use only while a key is handled\n"
        "function=$(complete -p featstore | sed 's/.*-F \\([^ ]*\\) .*/\\1/')\n"
        "while read -r -a COMP_WORDS; do\n"
        "  COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()\n"
        '  "$function" featstore\n'
        '  echo "${COMPREPLY[*]}"\n'
        "done <<'LINES'\n" + "\n".join(COMPLETED) + "\nLINES\n"
    )
    records = [line.split() for line in shell("bash", script, tmp_path).splitlines()]
    assert dict(zip(COMPLETED, records, strict=True)) == COMPLETED


FOR_ANY_SHELL = ("featstore ret", "featstore probe esc50 gtzan_g", "featstore probe esc50 --protocol x")


def test_zsh_completes(tmp_path: Path) -> None:
    """As a user has it: an interactive zsh, into which lines are typed up to a Tab; it says what it would have run."""
    typed = "".join(
        f"zpty -n -w typed $'{line}\\t\\n'\nzpty -r typed told '*/end*' && print -r -- ${{${{told##*ran/}}%%/end*}}\n"
        for line in FOR_ANY_SHELL
    )
    script = (
        "zmodload zsh/zpty\n"
        "zpty typed zsh -f -i\n"
        "zpty -w typed 'PS1=; autoload -U compinit; compinit -D; eval \"$(featstore completion zsh)\"'\n"
        'zpty -w typed \'featstore() { print -r -- ra""n/"$*"/en""d }\'\n'  # what is typed is echoed, too
        f"{typed}zpty -d typed\n"
    )
    records = [line.split()[-1:] for line in shell("zsh", script, tmp_path).splitlines()]
    assert records == [COMPLETED[line] for line in FOR_ANY_SHELL]


def test_fish_completes(tmp_path: Path) -> None:
    asked = [*FOR_ANY_SHELL, "featstore probe ./mine"]
    lines = "".join(f'complete -C "{line}"\necho ---\n' for line in asked)
    result = shell("fish", f"featstore completion fish | source\n{lines}", tmp_path).split("---\n")[:-1]
    names = [
        [line.split("\t")[0] for line in of.splitlines()] for of in result
    ]  # behind a tab is the help of a command
    assert names == [COMPLETED[line] for line in asked]


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_the_script_is_what_click_makes(name: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = run("completion", name)
    assert (printed.code, printed.err) == (0, "")
    monkeypatch.setenv("_FEATSTORE_COMPLETE", f"{name}_source")
    assert run().out.strip() == printed.out.strip()


def test_a_shell_that_is_not_known_is_named_in_one_line(run: Run) -> None:
    outcome = run("completion", "tcsh")
    assert outcome.code == 2
    assert all(f"'{name}'" in outcome.err for name in ("tcsh", "bash", "zsh", "fish"))


def test_every_task_is_completed_and_nothing_heavy_is_imported_for_it() -> None:
    code = (
        "import sys\nfrom featstore.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('loaded:', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    asked = environment(_FEATSTORE_COMPLETE="bash_complete", COMP_WORDS="featstore probe ", COMP_CWORD="2")
    child = subprocess.run(
        [sys.executable, "-c", code], env=asked, capture_output=True, text=True, timeout=60, check=True
    )
    *completed, loaded = child.stdout.splitlines()
    assert loaded == "loaded: []"
    assert completed == ["file,", *(f"plain,{name}" for name in manifest_files())]
