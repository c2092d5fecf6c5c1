"""After each edit of an encoder and its files: is it encoded again, is it reused, or does the canary stop the run?"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import featstore
from edited import ANOTHER, SAME, Project, made
from featstore.encoders import load_encoder
from featstore.errors import EncoderChanged
from featstore.extract import ExtractOptions
from featstore.extract.job import plan_recipe
from featstore.records import ExtractRecord
from handmade import clip, environment, extract, noise, write_split
from tiny import task


@pytest.fixture(autouse=True)
def unchanged_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_split(tmp_path / "data/tiny", "train", [clip("a", noise(0.3))])
    return tmp_path / "data"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return made(tmp_path / "project")


def run(project: Project, data: Path, **options: object) -> ExtractRecord:
    encoder = load_encoder(project.spec, arguments=project.arguments)
    [record] = extract(task(), data, data.parent / "store", encoder=encoder, **options)
    return record


def more(data: Path) -> None:
    write_split(data / "tiny", "train-more", [clip("b", noise(0.3, seed=1))])


@pytest.mark.parametrize("edit", ANOTHER)
def test_it_is_encoded_again_after_an_edit_that_may_change_a_number(edit: str, project: Project, data: Path) -> None:
    first = run(project, data)
    change, why = ANOTHER[edit]
    change(project)
    second = run(project, data)
    assert (second.shards_done, second.shards_reused) == (1, 0)
    assert second.fingerprint != first.fingerprint
    [note, *_] = second.notes
    assert why in note.rpartition(":")[2]
    assert f"MyEncoder@{first.fingerprint}" in note
    third = run(project, data)
    assert (third.shards_done, third.notes) == (0, ())


@pytest.mark.parametrize("edit", SAME)
def test_it_is_reused_after_an_edit_that_cannot_change_a_number(edit: str, project: Project, data: Path) -> None:
    first = run(project, data)
    SAME[edit](project)
    second = run(project, data)
    assert (second.shards_done, second.shards_reused, second.notes) == (0, 1, ())
    assert second.fingerprint == first.fingerprint
    more(data)
    assert run(project, data).shards_done == 1


def test_another_encoder_that_returns_the_very_same_is_pointed_out(project: Project, data: Path) -> None:
    first = run(project, data)
    ANOTHER["statement that changes no number"][0](project)
    second = run(project, data)
    assert [f"MyEncoder@{first.fingerprint}" in note for note in second.notes] == [True, True]
    ANOTHER["global constant"][0](project)
    assert len(run(project, data).notes) == 1


# what no hash finds: the canary


def test_a_data_file_that_no_argument_names_stops_the_run_before_anything_is_encoded(
    project: Project, data: Path
) -> None:
    run(project, data)
    project.replace("enc/numbers.txt", "0.0", "0.25")
    assert run(project, data).shards_reused == 1  # nothing to encode, and nothing looked at
    more(data)
    with pytest.raises(EncoderChanged) as caught:
        run(project, data)
    assert -1 <= caught.value.cosine < 0.9999
    assert list(opened(data).key) == ["a"]
    allowed = run(project, data, allow_drift=True)
    assert (allowed.shards_done, len(allowed.notes)) == (1, 1)
    project.replace("enc/numbers.txt", "0.25", "0.0")
    write_split(data / "tiny", "train-yet", [clip("c", noise(0.3, seed=2))])
    assert run(project, data).shards_done == 1  # what it was is what counts


def opened(data: Path) -> featstore.store.FeatureSet:
    return featstore.open(str(data.parent / "store")).select()


def test_a_data_file_whose_numbers_become_a_buffer_counts_as_weights(project: Project, data: Path) -> None:
    project.replace(
        "enc/my_encoder.py",
        "torch.ones(4), persistent",
        "torch.ones(4) + float((HERE / 'numbers.txt').read_text()), persistent",
    )
    first = run(project, data)
    project.replace("enc/numbers.txt", "0.0", "0.25")
    second = run(project, data)
    assert second.shards_done == 1
    assert second.fingerprint != first.fingerprint


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Path]:
    """A library in a folder that is called ``site-packages``."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "library_idt.py").write_text("def scaled(x):\n    return x * 1.0\n")
    sys.path.insert(0, str(folder))
    yield folder / "library_idt.py"
    sys.modules.pop("library_idt", None)


def test_a_library_whose_numbers_changed_stops_the_run_and_one_that_is_only_newer_does_not(
    project: Project, data: Path, library: Path
) -> None:
    project.replace("enc/my_encoder.py", "import torch\n\n", "import torch\nfrom library_idt import scaled\n\n")
    project.replace("enc/my_encoder.py", "        return (steps", "        return scaled(steps")
    first = run(project, data)
    for body, changed in (("x * 1.0 + 0.0", False), ("x * 1.01", True)):
        library.write_text(f"def scaled(x):\n    return {body}  # {'newer' * 9}\n")
        sys.modules.pop("library_idt", None)
        assert run(project, data).fingerprint == first.fingerprint
        write_split(data / "tiny", f"train-{body[-1]}{changed}", [clip(body, noise(0.3, seed=3))])
        if changed:
            with pytest.raises(EncoderChanged):
                run(project, data)
        else:
            assert run(project, data).shards_done == 1


def test_of_a_class_that_is_installed_the_version_of_its_distribution_counts_and_its_text_does_not(
    project: Project, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "site-packages"
    shutil.copytree(project.folder / "enc", folder)
    (folder / "my_encoder.py").rename(folder / "installed_idt.py")
    shutil.copytree(project.folder / "shared", tmp_path / "shared")
    sys.path.insert(0, str(folder))

    def install(version: str) -> ExtractRecord:
        about = folder / "installed_idt-1.dist-info"
        about.mkdir(exist_ok=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: installed-idt\nVersion: {version}\n")
        (about / "top_level.txt").write_text("installed_idt\n")
        (about / "RECORD").write_text("installed_idt.py,,\n")
        sys.modules.pop("installed_idt", None)
        [record] = extract(task(), data, tmp_path / "store", encoder=load_encoder("installed_idt:MyEncoder"))
        return record

    first = install("1.0")
    with (folder / "installed_idt.py").open("a") as file:
        file.write("\nUNUSED = 1\n")
    assert install("1.0").shards_reused == 1
    second = install("1.1")
    assert (second.shards_done, second.fingerprint != first.fingerprint) == (1, True)
    assert "version" in second.notes[0]
    for name in [name for name, module in sys.modules.items() if str(folder) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def test_hidden_random_state_stops_the_second_run(project: Project, data: Path) -> None:
    project.replace(
        "enc/my_encoder.py", "self.offset = offset", "self.offset = float.fromhex(__import__('secrets').token_hex(3))"
    )
    first = run(project, data)
    more(data)
    with pytest.raises(EncoderChanged):
        run(project, data)
    assert list(opened(data).key) == ["a"]
    assert first.shards_done == 1


def test_dropout_that_is_on_stops_the_first_run(project: Project, data: Path) -> None:
    project.replace(
        "enc/my_encoder.py", "steps @ self.weight.T", "torch.nn.functional.dropout(steps @ self.weight.T, 0.1)"
    )
    with pytest.raises(EncoderChanged, match="non-deterministic"):
        run(project, data)
    assert not list((data.parent / "store").rglob("utterance"))
    allowed = run(project, data, allow_drift=True)
    assert (allowed.shards_done, len(allowed.notes)) == (1, 1)
    more(data)
    with pytest.raises(EncoderChanged, match="non-deterministic"):
        run(project, data)


def test_state_that_one_forward_leaves_for_the_next_stops_the_first_run(project: Project, data: Path) -> None:
    project.replace(
        "enc/my_encoder.py", "        from lazy_idt", "        self.offset = self.offset + 0.1\n        from lazy_idt"
    )
    with pytest.raises(EncoderChanged, match="non-deterministic"):
        run(project, data)


# whatever was loaded before


def fingerprint(project: Project) -> str:
    encoder = load_encoder(project.spec, arguments=project.arguments)
    return plan_recipe(encoder, encoder.outputs[0], device="cpu", options=ExtractOptions()).fingerprint


CHILD = """
import json, sys
sys.path.insert(0, {preload!r})
{imports}
from featstore.encoders import load_encoder
from featstore.extract import ExtractOptions
from featstore.extract.job import plan_recipe
found = {{}}
for name, (spec, arguments) in json.loads(sys.stdin.read()).items():
    path = list(sys.path)
    encoder = load_encoder(spec, arguments=arguments)
    found[name] = plan_recipe(encoder, encoder.outputs[0], device="cpu", options=ExtractOptions()).fingerprint
    sys.path[:] = path
print(json.dumps(found))
"""


def in_a_child(projects: dict[str, Project], *, preload: Path | str = "", imports: str = "") -> dict[str, str]:
    """Fingerprints, computed one after the other in a fresh process, which may have imported something before."""
    asked = json.dumps({name: (each.spec, dict(each.arguments)) for name, each in projects.items()})
    code = CHILD.format(preload=str(preload), imports=imports)
    done = subprocess.run(
        [sys.executable, "-c", code], input=asked, env=environment(), capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_a_fingerprint_does_not_depend_on_what_the_process_loaded_before(tmp_path: Path) -> None:
    projects = {"untouched": made(tmp_path / "untouched")}
    for name, edit in {**{name: edit for name, (edit, _) in ANOTHER.items()}, **SAME}.items():
        projects[name] = made(tmp_path / name.replace(" ", "-"))
        edit(projects[name])
    here = {}
    for name, each in projects.items():
        path = list(sys.path)
        here[name] = fingerprint(each)
        sys.path[:] = path
    backwards = in_a_child(dict(reversed(projects.items())))
    assert here == backwards
    assert {here[name] for name in SAME} == {here["untouched"]}
    assert len({here[name] for name in ANOTHER} | {here["untouched"]}) == len(ANOTHER) + 1


def test_a_fingerprint_is_the_same_where_the_application_has_imported_the_files_itself(tmp_path: Path) -> None:
    project = made(tmp_path / "project")
    preloaded = in_a_child(
        {"it": project},
        preload=project.folder / "enc",
        imports="import nested_idt.base, nested_idt.deep.scale, beside_idt, dynamic_idt, lazy_idt",
    )
    assert preloaded["it"] == fingerprint(project)


def test_two_encoders_with_helpers_of_one_name_have_each_its_own(tmp_path: Path, data: Path) -> None:
    one, other = made(tmp_path / "one"), made(tmp_path / "other")
    other.replace("enc/beside_idt.py", "1.0", "3.0")
    encoders = [load_encoder(each.spec) for each in (one, other, one)]
    factors = [encoder.module.factor for encoder in encoders]
    assert factors == [1.0, 3.0, 1.0]
    assert [encoder.identity["code_sha256"] for encoder in encoders][::2] == [encoders[0].identity["code_sha256"]] * 2


def test_a_helper_that_is_edited_while_the_process_runs_is_run_and_hashed_as_it_reads(project: Project) -> None:
    before = load_encoder(project.spec)
    project.replace("enc/nested_idt/base.py", "1.0", "2.0")
    after = load_encoder(project.spec)
    assert (before.module.factor, after.module.factor) == (1.0, 2.0)
    assert before.identity["code_sha256"] != after.identity["code_sha256"]


def test_the_modules_that_count_are_those_that_it_loaded(project: Project) -> None:
    encoder = load_encoder(project.spec)
    assert [module.name for module in encoder.code] == [
        "", "beside_idt", "by_path_idt", "dynamic_idt", "lazy_idt", "nested_idt", "nested_idt.base", "nested_idt.deep",
        "nested_idt.deep.scale", "sibling_idt", "sibling_idt.late",
    ]  # fmt: skip


def test_embeddings_are_those_of_the_code_that_was_hashed(project: Project, data: Path) -> None:
    run(project, data)
    before = opened(data).utterance[0]
    project.replace("enc/dynamic_idt.py", "1.0", "2.0")
    record = run(project, data)
    after = featstore.open(str(data.parent / "store")).select(encoder=f"MyEncoder@{record.fingerprint}").utterance[0]
    np.testing.assert_allclose(after, 2 * before, rtol=1e-5, atol=1e-6)
