"""LaTeX: environments and braces that close, rows of equal length, and names that are text whatever they hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import featstore
from featstore.cli import cli
from featstore.report import build, grid, grids_to_latex, write_score
from featstore.report.latex import escape_latex
from scored import HOSTILE, hostile_records, score, scored

COMMANDS = {
    "begin", "end", "centering", "caption", "resizebox", "ifdim", "width", "linewidth", "else", "fi", "toprule",
    "midrule", "bottomrule", "textbf", "textsuperscript", "shortstack", "pm", "approx", "footnotesize",
    "textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar", "textdagger",
}  # fmt: skip


def read(text: str) -> list[list[list[str]]]:
    """The tables of a document as rows of cells; a small tokenizer stands for TeX."""
    tables: list[list[list[str]]] = []
    environments: list[str] = []
    depth = 0
    for line in text.splitlines():
        if line.startswith("%"):
            continue
        code = re.sub(r"(?<!\\)%$", "", line)
        assert not re.search(r"(?<!\\)(?:\\\\)*[%#~^]", code), line
        for command in re.findall(r"\\([A-Za-z]+)", re.sub(r"\\\\", "", code)):
            assert command in COMMANDS, line
        for name, kind in re.findall(r"\\(begin|end)\{(\w+)\}", code):
            if name == "begin":
                environments.append(kind)
            else:
                assert environments.pop() == kind, line
            if (name, kind) == ("begin", "tabular"):
                tables.append([])
        bare = re.sub(r"\\[{}]", "", code.replace(r"\\", ""))
        depth += bare.count("{") - bare.count("}")
        assert depth >= 0, line
        assert len(re.findall(r"(?<!\\)\$", code)) % 2 == 0, line
        if "tabular" in environments and line.endswith(r" \\"):
            tables[-1].append(re.split(r" (?<!\\)& ", line.removesuffix(r" \\")))
            assert depth == 1, line  # within \resizebox
    assert (environments, depth) == ([], 0)
    return tables


def columns_of(text: str) -> list[int]:
    return [len(spec) for spec in re.findall(r"\\begin\{tabular\}\{([lr]+)\}", text)]


def test_a_leaderboard_has_a_row_for_each_encoder_with_the_best_in_bold() -> None:
    records = [score(encoder=name, value=value, ci_low=value - 0.02, ci_high=value + 0.02) for name, value in
               (("log_mel", 0.5), ("mfcc & co", 0.75), ("x", 0.6))]  # fmt: skip
    text = grids_to_latex(grid(table) for table in build(records).tables)
    (table,) = read(text)
    assert columns_of(text) == [2]
    assert table[0] == ["Encoder", r"\shortstack[r]{words\\accuracy}"]
    assert [row[0] for row in table[1:]] == [r"mfcc \& co", "x", r"log\_mel"]
    assert table[1][1] == r"\textbf{0.750 $\pm$0.020}"


def test_a_table_with_more_tasks_than_encoders_has_a_row_for_each_task() -> None:
    records = [
        scored(f"task {at}", encoder, value)
        for at in range(9)
        for encoder, value in (("a", 0.5), ("b", 0.501), ("c", 0.3))
    ]
    text = grids_to_latex(grid(table) for table in build(records).tables)
    (table,) = read(text)
    assert columns_of(text) == [5]
    assert {len(row) for row in table} == {5}
    assert table[0] == ["", "b", "a", "c", "Resolution"]
    assert [row[0] for row in table[1:4]] == ["Rank", "Tie", "Rank, new tasks"]
    assert [row[0] for row in table if row[0].startswith("task")] == [f"task {at} accuracy" for at in range(9)]
    task = table[-1]
    assert task[1].startswith(r"\textbf{0.501")
    assert task[1].endswith(r"\textsuperscript{a}")
    assert task[2].startswith(r"$\approx$ 0.500")
    assert task[3].endswith(r"\textsuperscript{b}")


@pytest.mark.parametrize("names", ["tasks", "encoders"])
def test_names_are_text_whatever_they_hold(names: str) -> None:
    texts = [*HOSTILE, r"\input{/etc/passwd}", r"a\\b", "[2ex] x", "*", "50% #1 ~ ^ $x$", "{", "}}", "\\"]
    records = [scored(each, "one", 0.5) if names == "tasks" else scored("one", each, 0.5) for each in texts]
    text = grids_to_latex(grid(table) for table in build(records).tables)
    (table,) = read(text)
    assert {len(row) for row in table} == {columns_of(text)[0]}
    assert not any(row[0].startswith(("[", "*")) for row in table)
    read(grids_to_latex(grid(table) for table in build(hostile_records()).tables))


def test_escapes_are_those_of_latex() -> None:
    assert escape_latex(r"a_b & 50% #1 {x} \y ~^ <|>") == (
        r"a\_b \& 50\% \#1 \{x\} \textbackslash{}y \textasciitilde{}\textasciicircum{} "
        r"\textless{}\textbar{}\textgreater{}"
    )


def test_the_suffix_tex_names_the_format_of_report_and_compare(tmp_path: Path) -> None:
    records = [scored("one", encoder, value) for encoder, value in (("a", 0.5), ("b", 0.6))]
    for record in records:
        write_score(record, tmp_path / "r")
    api = featstore.report(records, tmp_path / "api.tex").read_text()
    assert len(read(api)) == 1
    for arguments, n_columns in (([], 4), (["--compare", "a", "b"], 7)):
        out = tmp_path / "cli.tex"
        result = CliRunner().invoke(cli, ["report", str(tmp_path / "r"), "--out", str(out), *arguments])
        assert result.exit_code == 0, result.output
        text = out.read_text()
        assert columns_of(text) == [n_columns]
        assert {len(row) for row in read(text)[0]} == {n_columns}
    assert api.startswith("% needs")
