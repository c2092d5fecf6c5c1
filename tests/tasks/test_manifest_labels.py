from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featstore.errors import LabelError
from featstore.tasks import Manifest, find_task, labels

TaskOf = Callable[..., Manifest]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
READERS_OF_KIND = {
    "clip": labels.field_values,
    "multilabel": labels.field_sets,
    "regression": labels.field_numbers,
    "frame": labels.field_events,
    "contrastive": labels.captions,
    "asr": labels.transcripts,
}


def one(read: Callable[..., list[Any]], task: Manifest, sample: object) -> Any:
    (label,) = read(task, ["clip-7"], [json.dumps(sample)])
    return label


@pytest.mark.parametrize(
    ("value", "text"),
    [("Owl ", "Owl "), (3, "3"), (3.0, "3"), (2.5, "2.5"), (-0.5, "-0.5"), (True, "true"), (False, "false"), (0, "0")],
)
def test_a_value_has_one_text(task: TaskOf, value: object, text: str) -> None:
    assert one(labels.field_values, task(label={"field": "y"}), {"y": value}) == text


@pytest.mark.parametrize("value", [None, "", [], ["owl"], {"a": 1}, float("nan"), float("inf"), "\ud800"])
def test_what_is_no_class_is_an_error_that_names_clip_and_field(task: TaskOf, value: object) -> None:
    with pytest.raises(LabelError, match=r"birds.*'clip-7'.*'y'"):
        one(labels.field_values, task(label={"field": "y"}), {"y": value})


def test_a_dotted_path_walks_into_objects(task: TaskOf) -> None:
    nested = task(label={"field": "speaker.sex"})
    assert one(labels.field_values, nested, {"speaker": {"sex": "F"}, "sex": "M"}) == "F"
    with pytest.raises(LabelError, match=r"'speaker\.sex'.*'age'"):
        one(labels.field_values, nested, {"speaker": {"age": 3}})
    with pytest.raises(LabelError, match=r"'sex'.*'F'"):
        one(labels.field_values, nested, {"speaker": "F"})


def test_a_misnamed_field_is_met_with_the_one_that_is_there(task: TaskOf) -> None:
    with pytest.raises(LabelError, match=r"'label'.*'labels'"):
        one(labels.field_values, task(label={"field": "label"}), {"labels": "owl"})


def test_a_mapping_renames_and_its_star_catches_the_rest() -> None:
    gender = find_task("librispeechmalefemale")
    metas = [json.dumps({"gender": value}) for value in ("M", "F", "unknown", 1)]
    assert labels.field_values(gender, list("abcd"), metas) == ["male", "female", "female", "female"]
    with pytest.raises(LabelError, match=r"'gender'.*None"):
        one(labels.field_values, gender, {"gender": None})


def test_without_a_star_every_value_needs_its_entry() -> None:
    broadcast = find_task("subway_broadcast")
    metas = [json.dumps({"broadcasting": value}) for value in (1, True, "1", 0, False)]
    heard = labels.field_values(broadcast, list("abcde"), metas)
    assert heard == ["broadcasting"] * 3 + ["silent"] * 2
    with pytest.raises(LabelError, match=r"'2'.*'0', '1', 'false', 'true'"):
        one(labels.field_values, broadcast, {"broadcasting": 2})


def test_a_label_outside_the_classes_is_named_with_a_few_that_are_allowed() -> None:
    with pytest.raises(LabelError) as caught:
        one(labels.field_values, find_task("voxceleb1"), {"speakerid": "id1"})
    message = str(caught.value)
    assert all(value in message for value in ("voxceleb1", "'clip-7'", "'speakerid'", "'id1'", "1251", "'id10003', "))
    assert message.endswith("and 1239 more")


def test_classes_in_one_string_are_cut_at_the_separator() -> None:
    fsd50k = find_task("fsd50k")
    assert one(labels.field_sets, fsd50k, {"soundevent": "Bark; Dog;Bark;"}) == {"Bark", "Dog"}
    assert one(labels.field_sets, fsd50k, {"soundevent": ""}) == frozenset()
    with pytest.raises(LabelError, match=r"'Unicorn'.*\b200\b"):
        one(labels.field_sets, fsd50k, {"soundevent": "Bark;Unicorn"})


@given(st.lists(TEXT))
def test_a_list_of_classes_is_their_set_whatever_they_hold(task: TaskOf, classes: list[str]) -> None:
    assert one(labels.field_sets, task(kind="multilabel", label={"field": "y"}), {"y": classes}) == set(classes)


@given(st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1)), st.sampled_from([";", ",", " | "]))
def test_joined_and_cut_classes_are_the_same_classes(task: TaskOf, classes: list[str], separator: str) -> None:
    joined = task(kind="multilabel", label={"field": "y", "separator": separator})
    assert one(labels.field_sets, joined, {"y": separator.join(classes)}) == set(classes)


def test_a_multilabel_string_without_a_separator_is_one_class(task: TaskOf) -> None:
    assert one(labels.field_sets, task(kind="multilabel", label={"field": "y"}), {"y": "a;b"}) == {"a;b"}


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_survives_json_and_text(task: TaskOf, number: float) -> None:
    regression = task(kind="regression", label={"field": "y"})
    assert one(labels.field_numbers, regression, {"y": number}) == number
    assert one(labels.field_numbers, regression, {"y": str(number)}) == number


@pytest.mark.parametrize("value", [True, None, "", "ten", "1_0", "nan", float("inf"), 10**400, [1.0]])
def test_what_is_no_finite_number_is_an_error(task: TaskOf, value: object) -> None:
    with pytest.raises(LabelError, match="'clip-7'"):
        one(labels.field_numbers, task(kind="regression", label={"field": "y"}), {"y": value})


def test_an_event_of_two_classes_is_two_events() -> None:
    sample = [
        {"onset": 0.5, "offset": 2, "label": "Speech,Dishes"},
        {"onset": 2.0, "offset": 2.0, "label": "Dog"},
    ]
    events = one(labels.field_events, find_task("desed"), sample)
    assert [(event.onset, event.offset, event.label) for event in events] == [
        (0.5, 2.0, "Speech"),
        (0.5, 2.0, "Dishes"),
        (2.0, 2.0, "Dog"),
    ]
    assert one(labels.field_events, find_task("desed"), []) == ()


def test_piano_notes_are_classes_by_their_midi_number() -> None:
    (event,) = one(labels.field_events, find_task("maestro"), [{"start": 1.0, "end": 1.25, "note": 60, "velocity": 9}])
    assert (event.onset, event.offset, event.label) == (1.0, 1.25, "60")


@pytest.mark.parametrize(
    ("sample", "named"),
    [
        ({"onset": 0}, "clip-7"),
        (["Dog"], "'onset'"),
        ([{"onset": 0, "label": "Dog"}], "'offset'"),
        ([{"onset": 2, "offset": 1, "label": "Dog"}], r"\b2\b.*\b1 s"),
        ([{"onset": -1, "offset": 1, "label": "Dog"}], r"-1\b.*\b1 s"),
        ([{"onset": 0, "offset": 1, "label": "Dragon"}], r"'Dragon'.*\b10\b"),
    ],
)
def test_a_wrong_event_is_an_error(sample: object, named: str) -> None:
    with pytest.raises(LabelError, match=named):
        one(labels.field_events, find_task("desed"), sample)


def test_events_may_lie_inside_the_json(task: TaskOf) -> None:
    inside = task(kind="frame", label={"field": "what", "events": "notes.list", "onset": "from", "offset": "to"})
    sample = {"notes": {"list": [{"from": 0, "to": 1, "what": "c"}]}}
    assert [event.label for event in one(labels.field_events, inside, sample)] == ["c"]


def test_captions_are_every_value_or_the_named_fields(task: TaskOf) -> None:
    sample = {"caption_1": "Rain.", "caption_2": "It rains.", "file": "rain.wav"}
    assert one(labels.captions, find_task("clotho"), sample) == ("Rain.", "It rains.", "rain.wav")
    named = task(kind="contrastive", label={"captions": ["caption_2", "caption_1"]})
    assert one(labels.captions, named, sample) == ("It rains.", "Rain.")
    listed = task(kind="contrastive", label={"captions": ["captions"]})
    assert one(labels.captions, listed, {"captions": ["Rain.", "It rains."]}) == ("Rain.", "It rains.")
    for wrong in ([], ["Rain.", ""], [["Rain."]]):
        with pytest.raises(LabelError):
            one(labels.captions, listed, {"captions": wrong})
    for wrong in ({}, [], {"caption_1": 3, "caption_2": "x"}, {"caption_1": " ", "caption_2": "x"}):
        with pytest.raises(LabelError, match="clip-7"):
            one(labels.captions, find_task("clotho"), wrong)


def test_a_transcript_is_read_as_it_is_written() -> None:
    assert one(labels.transcripts, find_task("librispeech"), {"trans": "HE  SAID: «no»"}) == "HE  SAID: «no»"


@pytest.mark.parametrize("kind", READERS_OF_KIND)
@pytest.mark.parametrize(
    "meta", ["", "{", "owl", "null", "3", '"owl"', "[" * 100_000, "9" * 5000, '{"y": NaN}', '{"y": 1e999}', "\ud800"]
)
def test_hostile_json_is_a_label_error_on_one_short_line(task: TaskOf, kind: str, meta: str) -> None:
    hostile = task(kind=kind, label={"captions": "*"} if kind == "contrastive" else {"field": "y"})
    with pytest.raises(LabelError) as caught:
        READERS_OF_KIND[kind](hostile, ["odd\nkey"], [meta])
    message = str(caught.value)
    assert "odd\\nkey" in message
    assert "\n" not in message
    assert len(message) < 400
    message.encode()


@pytest.mark.parametrize("kind", READERS_OF_KIND)
@given(sample=JSON)
def test_any_json_gives_a_label_or_a_label_error(task: TaskOf, kind: str, sample: object) -> None:
    rules = {"captions": "*"} if kind == "contrastive" else {"field": "y"}
    for meta in (sample, {"y": sample}, [{"y": sample, "onset": 0, "offset": 1}]):
        try:
            READERS_OF_KIND[kind](task(kind=kind, label=rules), ["k"], [json.dumps(meta)])
        except LabelError as error:
            str(error).encode()


def test_class_names_are_the_manifests_or_the_sorted_union(task: TaskOf) -> None:
    assert labels.class_names(find_task("cremad"), ["N"]) == ("H", "S", "A", "F", "D", "N")
    assert labels.class_names(task(), ["wren", "owl", "wren"]) == ("owl", "wren")
    assert labels.class_names(task(), ["10", "9", "-1"]) == ("-1", "9", "10")
    assert labels.class_names(task(), ["10", "9", "x"]) == ("10", "9", "x")
    assert labels.class_names(task(), []) == ()


@given(st.lists(TEXT))
def test_class_names_hold_every_class_once_in_an_order_of_their_own(task: TaskOf, observed: list[str]) -> None:
    names = labels.class_names(task(), observed)
    assert sorted(names) == sorted(set(observed))
    assert names == labels.class_names(task(), reversed(observed))


def test_keys_and_metas_come_in_pairs(task: TaskOf) -> None:
    with pytest.raises(ValueError, match="zip"):
        labels.field_values(task(), ["a", "b"], ['{"species": "owl"}'])
