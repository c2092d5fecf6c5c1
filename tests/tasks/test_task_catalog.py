from __future__ import annotations

from pathlib import Path

import pytest

from featstore.errors import ManifestError, UnknownTask
from featstore.tasks import Manifest, builtin_tasks, find_task

REPOSITORY = Path(__file__).resolve().parents[2]
XARES_TASKS = [
    "asvspoof2015", "clotho", "cremad", "desed", "esc50", "finger_snap", "fluentspeechcommands", "freemusicarchive",
    "fsd50k", "fsdkaggle2018", "gtzan_genre", "inside_outside_car", "key_scratching", "libricount", "librispeech",
    "librispeechmalefemale", "liveenv", "maestro", "nsynthinstument", "ravdess", "speechcommandsv1", "subway_broadcast",
    "urbansound8k", "vocalimitations", "vocalsound", "voxceleb1", "voxlingua33",
]  # fmt: skip


@pytest.fixture(scope="module")
def tasks() -> dict[str, Manifest]:
    return {task.name: task for task in builtin_tasks()}


@pytest.fixture(scope="module")
def challenge(tasks: dict[str, Manifest]) -> dict[str, Manifest]:
    return {name: tasks[name] for name in XARES_TASKS}


def test_every_task_of_the_challenge_is_there_and_loads(tasks: dict[str, Manifest]) -> None:
    assert set(XARES_TASKS) < set(tasks)
    assert list(tasks) == sorted(tasks)


def test_every_file_is_named_after_its_task() -> None:
    stems = sorted(path.stem for path in (REPOSITORY / "manifests").glob("*.toml"))
    assert [task.name for task in builtin_tasks()] == stems


def test_shards_are_looked_for_where_x_ares_lays_them_out(challenge: dict[str, Manifest]) -> None:
    assert all(task.data.dataset == name for name, task in challenge.items())


def test_weights_of_the_public_and_of_the_private_tasks_add_up(challenge: dict[str, Manifest]) -> None:
    # Counted by hand from the published system; the private tasks weigh 5000 each.
    private = {name for name, task in challenge.items() if task.private}
    assert private == {"finger_snap", "inside_outside_car", "key_scratching", "liveenv", "subway_broadcast"}
    assert {challenge[name].eval_weight for name in private} == {5000}
    assert all((task.data.zenodo is None) == task.private for task in challenge.values())
    public = sum(task.eval_weight for task in challenge.values() if not task.private)
    assert public == (
        2000 + 1045 + 1116 + 1153 + 400 + 2000 + 800 + 2000 + 1600 + 100 + 1144 + 10000 + 2620 + 65 + 2000 + 360 + 2000
        + 873 + 1867 + 2000 + 2000 + 1609
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "epochs", "batch_size"),
    [
        ("asvspoof2015", 5, 64), ("clotho", 20, 128), ("esc50", 10, 32), ("freemusicarchive", 3, 32),
        ("liveenv", 50, 32), ("maestro", 50, 1), ("librispeech", 10, 4), ("vocalimitations", 20, 32),
        ("voxlingua33", 10, 64),
    ],
)  # fmt: skip
def test_training_follows_the_published_hyper_parameters(
    challenge: dict[str, Manifest], name: str, epochs: int, batch_size: int
) -> None:
    assert (challenge[name].probe.epochs, challenge[name].probe.batch_size) == (epochs, batch_size)
    assert {task.probe.learning_rate for task in challenge.values()} == {1e-3}


@pytest.mark.parametrize(
    ("name", "number", "first", "last"),
    [
        ("asvspoof2015", 2, "human", "spoof"), ("cremad", 6, "H", "N"), ("desed", 10, "Cat", "Frying"),
        ("finger_snap", 2, "T", "F"), ("fluentspeechcommands", 248, "Change language", None),
        ("fsd50k", 200, "Accelerating_and_revving_and_vroom", None), ("fsdkaggle2018", 41, "Hi-hat", None),
        ("gtzan_genre", 10, "blues", "rock"), ("libricount", 11, "0", "10"),
        ("librispeechmalefemale", 2, "male", "female"), ("liveenv", 28, "Airplane", "Water"),
        ("maestro", 87, "21", "107"), ("ravdess", 8, "neutral", "surprised"), ("speechcommandsv1", 30, "sheila", None),
        ("vocalimitations", 302, "000Animal_Domestic animals_ pets_Cat_Growling_reference", None),
        ("voxceleb1", 1251, "id10003", "id11251"), ("voxlingua33", 33, "uk", "sr"),
    ],
)  # fmt: skip
def test_classes_are_as_many_and_in_the_order_as_published(
    challenge: dict[str, Manifest], name: str, number: int, first: str, last: str | None
) -> None:
    classes = challenge[name].label.classes
    assert classes is not None
    assert (len(classes), classes[0]) == (number, first)
    assert last is None or classes[-1] == last


def test_folds_are_as_many_as_published(challenge: dict[str, Manifest]) -> None:
    folds = {name: len(task.folds) for name, task in challenge.items() if task.folds is not None}
    assert folds == {
        "esc50": 5, "gtzan_genre": 10, "libricount": 5, "ravdess": 4, "urbansound8k": 10, "vocalimitations": 3
    }  # fmt: skip
    assert challenge["urbansound8k"].patterns["10"] == "urbansound_fold10_0000000.tar"


def test_where_the_validation_set_is_the_test_set_both_are_one_feature_set(tasks: dict[str, Manifest]) -> None:
    shared = {name for name, task in tasks.items() if task.splits and task.splits.valid == task.splits.test}
    assert {
        "desed", "finger_snap", "fsdkaggle2018", "inside_outside_car", "key_scratching", "liveenv", "subway_broadcast",
        "voxlingua33", "speechocean762",
    } == {name for name in shared if not name.startswith("demo-")}  # fmt: skip
    assert tasks["desed"].feature_sets == {"train": "train", "valid": "test", "test": "test"}
    assert set(tasks["subway_broadcast"].feature_sets.values()) == {"test"}


def test_kinds_and_metrics_follow_the_published_system(challenge: dict[str, Manifest]) -> None:
    unusual = {name: (task.kind, task.metric) for name, task in challenge.items() if task.metric != "accuracy"}
    assert unusual == {
        "clotho": ("contrastive", "recall_at_1"),
        "desed": ("frame", "segment_f1_macro"),
        "fsd50k": ("multilabel", "mAP"),
        "librispeech": ("asr", "wer_inv"),
        "maestro": ("frame", "segment_f1_micro"),
    }
    assert {task.kind for name, task in challenge.items() if name not in unusual} == {"clip"}
    assert challenge["desed"].metric_args.segment_seconds == 1.0
    assert challenge["maestro"].metric_args.segment_seconds == 0.1
    assert challenge["maestro"].probe.pos_weight == 10
    assert challenge["clotho"].patterns["test"] == "clotho_validation*.tar"


def test_tasks_without_a_published_nearest_neighbour_score_are_not_retrieved(challenge: dict[str, Manifest]) -> None:
    assert {name for name, task in challenge.items() if not task.retrieve.enabled} == {
        "clotho", "desed", "fsd50k", "fsdkaggle2018", "librispeech", "liveenv", "maestro"
    }  # fmt: skip
    assert {(task.retrieve.k, task.retrieve.temperature) for task in challenge.values()} == {(10, 0.07)}


def test_crops_make_the_two_librispeech_tasks_two_datasets(challenge: dict[str, Manifest]) -> None:
    crops = {name: task.data.crop_seconds for name, task in challenge.items() if task.data.crop_seconds is not None}
    assert crops == {
        "clotho": 30, "freemusicarchive": 10, "fsd50k": 10, "librispeechmalefemale": 5, "voxceleb1": 6,
        "voxlingua33": 10,
    }  # fmt: skip
    assert challenge["librispeechmalefemale"].feature_dataset == "librispeechmalefemale+crop5s"
    assert challenge["librispeech"].data.zenodo == challenge["librispeechmalefemale"].data.zenodo == "14716252"


def test_the_task_that_x_ares_only_plans_weighs_nothing(tasks: dict[str, Manifest]) -> None:
    planned = tasks["speechocean762"]
    assert (planned.kind, planned.label.field, planned.eval_weight) == ("regression", "accuracy", 0)


def test_a_task_is_found_by_name_or_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (REPOSITORY / "manifests" / "esc50.toml").read_text().replace('"esc50"', '"mine"')
    (tmp_path / "mine.toml").write_text(text)
    (tmp_path / "no-suffix").write_text(text)
    (tmp_path / "esc50").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_task("esc50").name == "esc50"
    assert find_task("mine.toml").name == find_task(str(tmp_path / "mine.toml")).name == "mine"
    assert find_task("no-suffix").name == "mine"
    with pytest.raises(ManifestError):
        find_task("yours.toml")


@pytest.mark.parametrize(
    ("typed", "meant"), [("esc-50", "esc50"), ("ESC50", "esc50"), ("gtzan", "gtzan_genre"), ("voxceleb", "voxceleb1")]
)
def test_a_misspelt_task_is_met_with_the_right_spelling(typed: str, meant: str) -> None:
    with pytest.raises(UnknownTask, match=rf"\b{meant}\b") as caught:
        find_task(typed)
    assert isinstance(caught.value, KeyError)


@pytest.mark.parametrize("typed", ["", ".", "no\0task", "x" * 10_000, "../manifests/esc50", "two\nlines"])
def test_no_odd_name_is_a_task_or_a_crash(typed: str) -> None:
    with pytest.raises(UnknownTask) as caught:
        find_task(typed)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
