"""`featstore inspect`: what a store holds, and how it came to be."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from featstore.cli.options import emit_json, feature_set_options, json_option, say, say_json, selection, store_option
from featstore.errors import UnknownFeatureSet, UsageError
from featstore.formatting import counted, lasting, printable, spoken_bytes

if TYPE_CHECKING:
    from featstore.diagnostics import Health
    from featstore.store import FeatureSet, Store
    from featstore.store.summary import Details, Quartiles, Summary

__all__ = ["inspect"]

_SHOWN = 12


@click.command()
@click.argument("path", required=False)
@store_option
@feature_set_options
@click.option(
    "--health",
    is_flag=True,
    help="State of each embedding space: norms, effective rank, anisotropy, dead dimensions, hubness, near-duplicates "
    "in other splits.",
)
@click.option("--label", metavar="FIELD", help="With --health: separability of the classes that this field names.")
@click.option(
    "--near",
    type=click.FloatRange(min=0, max=1, min_open=True),
    metavar="COSINE",
    help="With --health: from where on two whitened vectors are near-duplicates.  [default: 0.98]",
)
@click.option("--verbose", "-v", is_flag=True, help="Everything about each feature set, and lists in full.")
@json_option
def inspect(
    *,
    path: str | None,
    store_url: str,
    encoder: str | None,
    dataset: str | None,
    split: str | None,
    health: bool,
    label: str | None,
    near: float | None,
    verbose: bool,
    as_json: bool,
) -> None:
    """Show what a store holds: a table, or everything about one feature set.

    PATH is ENCODER[/DATASET[/SPLIT]], as the table shows them; it says what --encoder, --dataset and --split say.

    \b
    featstore inspect --store S                     every feature set
    featstore inspect logmel/words --store S        those of one encoder and dataset
    featstore inspect logmel/words/test --store S   recipe, provenance, clips left out, state of the numbers
    featstore inspect logmel/words --store S --health --label word      state of the space, leakage between splits
    """  # noqa: D301 - click takes the character itself
    from featstore.store import open_store
    from featstore.store.summary import examine, summarise

    store = open_store(store_url)
    asked = selection(path, encoder, dataset, split)
    chosen = _matching(store, asked)
    if health:
        _tell_health(store, chosen, label=label, near=near, verbose=verbose, as_json=as_json)
        return
    if label is not None or near is not None:
        raise UsageError("--label and --near say what --health measures: add --health, or leave them out")
    in_full = verbose or (len(chosen) == 1 and any(asked))
    if as_json:
        records = [examine(fs).as_json() if in_full else asdict(summarise(fs)) for fs in chosen]
        say_json(records)
    elif in_full:
        for fs in chosen:
            _tell_details(examine(fs), limit=None if verbose else _SHOWN)
    else:
        _tell_table([summarise(fs) for fs in chosen], url=store.url)
        if not any(asked):
            _tell_foreign(store.foreign())


def _matching(store: Store, asked: Sequence[str | None]) -> list[FeatureSet]:
    encoder, dataset, split = asked
    chosen = store.feature_sets(encoder=encoder, dataset=dataset, split=split)
    if not chosen and any(asked):
        wanted = "/".join(name or "*" for name in asked)
        raise UnknownFeatureSet(
            f"{store.url} holds nothing of {wanted}: `featstore inspect --store {store.url}` shows what is there"
        )
    from featstore.report.leaderboard import natural

    return sorted(chosen, key=lambda fs: (natural(fs.encoder), fs.recipe.fingerprint))


def _tell_table(summaries: Sequence[Summary], *, url: str) -> None:
    if not summaries:
        say(f"{url}: a store without feature sets")
        return
    from featstore.cli.tables import plain_table, show

    header = ("encoder", "dataset", "split", "clips", "windows", "dim", "frames", "hours", "size", "left out")
    rows = [
        (
            f"{s.encoder}@{s.fingerprint}",
            s.dataset,
            s.split,
            f"{s.clips:,}",
            f"{s.windows:,}",
            str(s.dim),
            "0" if s.frames is None else f"{s.frames:,}",
            _hours(s.audio_seconds),
            spoken_bytes(s.bytes),
            f"{s.left_out:,}",
        )
        for s in summaries
    ]
    show(plain_table(header, rows))
    audio_seconds, n_bytes = sum(s.audio_seconds for s in summaries), sum(s.bytes for s in summaries)
    say(f"  {counted(len(summaries), 'feature set')}, {lasting(audio_seconds)}, {spoken_bytes(n_bytes)}")


def _tell_foreign(paths: Sequence[str]) -> None:
    if paths:
        more = f" and {len(paths) - _SHOWN:,} more" if len(paths) > _SHOWN else ""
        say(f"  {len(paths):,} not of featstore, left alone: {', '.join(map(printable, paths[:_SHOWN]))}{more}")


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.2f}" if hours >= 1 else f"{hours:.2g}"


def _tell_health(
    store: Store, chosen: Sequence[FeatureSet], *, label: str | None, near: float | None, verbose: bool, as_json: bool
) -> None:
    from featstore.cli.tables import plain_table, show
    from featstore.diagnostics import NEAR_COSINE, examine_health, health_notes

    found = examine_health(
        chosen, among=store.feature_sets(), label=label, near_cosine=NEAR_COSINE if near is None else near
    )
    if as_json:
        emit_json(found)
        return
    header = ["feature set", "windows", "norm", "rank", "anisotropy", "dead", "repeated", "hubness", "orphans"]
    header += ["separable"] if label is not None else []
    show(plain_table([*header, "near-duplicates"], [_health_row(each, told_label=label is not None) for each in found]))
    for note in health_notes(found, told_label=label is not None):
        say(f"  {note}")
    pairs = [(each, pair) for each in found if each.overlap is not None for pair in each.overlap.pairs]
    if pairs:
        say(f"  Near-duplicates in other splits, {len(pairs):,} named:")
        for each, pair in pairs if verbose else pairs[:_SHOWN]:
            say(f"    {pair.cosine:.4f}  {each.path}: {printable(pair.clip)} is {printable(pair.other)}")
        if not verbose:
            _tell_more(len(pairs) - _SHOWN, "pairs")


def _health_row(found: Health, *, told_label: bool) -> tuple[str, ...]:
    space, overlap = found.space, found.overlap
    apart = space.separability
    separable = "-" if apart is None else f"{apart.centroid_accuracy:.2f} ({apart.largest_class:.2f} by chance)"
    return (
        found.path,
        f"{found.windows:,}" + ("" if space.rows == found.windows else f" ({space.rows:,} drawn)"),
        _number(space.norm_median, "{:#.4g}") + ("" if not space.not_finite else f" ({space.not_finite:,} not finite)"),
        f"{_number(space.effective_rank, '{:.1f}')} of {space.dim}",
        _number(space.anisotropy, "{:.2f}"),
        f"{len(space.dead_dimensions):,}",
        f"{space.n_duplicate_dimensions:,}",
        "-" if space.hubness is None else f"{space.hubness.skewness:.2f}",
        "-" if space.hubness is None else f"{space.hubness.orphans:.0%}",
        *([separable] if told_label else []),
        "no other split"
        if overlap is None
        else f"{overlap.clips:,}"
        + ("" if overlap.searched == overlap.total else f" ({overlap.searched:,} windows drawn)"),
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _tell_details(details: Details, *, limit: int | None) -> None:
    from featstore.cli.tables import plain_table, show

    say(details.summary.path)
    entries = [*_facts(details), *_provenance(details)]
    width = max(len(name) for name, _ in entries)
    for name, text in entries:
        say(f"  {name:<{width}}  {text}")
    shards = details.shards[:limit]
    rows = [
        (
            printable(each.shard),
            each.sha256[:12],
            f"{each.clips:,}",
            f"{each.windows:,}",
            f"{each.audio_seconds:,.1f}",
            f"{each.left_out:,}",
            each.committed_at[:19],
            f"{each.seconds:.2f}",
        )
        for each in shards
    ]
    show(plain_table(("shard", "sha256", "clips", "windows", "audio s", "left out", "committed (UTC)", "took s"), rows))
    _tell_more(len(details.shards) - len(shards), "shards")
    if details.skipped:
        _tell_skipped(details, limit=limit)


def _tell_skipped(details: Details, *, limit: int | None) -> None:
    say(f"  {counted(len(details.skipped), 'clip')} left out:")
    reasons = Counter(clip.reason for clip in details.skipped)
    for reason, count in reasons.most_common(limit):
        clips = [f"{clip.shard}/{clip.key}" for clip in details.skipped if clip.reason == reason]
        named = ", ".join(map(printable, clips[: limit and 3]))
        say(f"    {count:,}  {printable(reason).rstrip('.')}: {named}" + (", ..." if limit and count > 3 else ""))
    if limit is not None:
        _tell_more(len(reasons) - limit, "reasons")


def _facts(details: Details) -> Iterator[tuple[str, str]]:
    summary, recipe = details.summary, details.recipe
    frames = "not stored" if summary.frames is None else f"{summary.frames:,} x {summary.dim} {recipe['frame_dtype']}"
    yield "clips", f"{summary.clips:,} in {counted(summary.windows, 'window')}, {lasting(summary.audio_seconds)}"
    yield "utterance", f"{summary.windows:,} x {summary.dim} float32"
    yield "frames", f"{frames}, one every {recipe['hop_seconds'] * 1000:g} ms"
    n_parts = len({each.part for each in details.shards})
    yield "size", f"{spoken_bytes(summary.bytes)} in {counted(n_parts, 'part')}"
    yield "window seconds", _spread(details.window_seconds, "{:.2f}")
    if summary.frames is not None:
        yield "frames a window", _spread(details.frame_lengths, "{:,.0f}")
    yield "norms", _spread(details.norms, "{:.4g}")
    yield "not finite", _count(details.windows_not_finite, "windows", "NaN or infinity in the utterance vector")
    yield "repeated vectors", _count(details.repeated_vectors, "windows", "bit for bit as an earlier window")
    yield "repeated keys", _count(details.repeated_keys, "windows", "run `featstore verify`")


def _provenance(details: Details) -> Iterator[tuple[str, str]]:
    for name, value in details.recipe.items():
        if name == "encoder_identity":
            for field, what in value.items():
                yield f"encoder {field.replace('_', ' ')}", what if isinstance(what, str) else json.dumps(what)
        elif name not in ("encoder", "dim", "hop_seconds", "frame_dtype"):
            yield name.replace("_", " "), str(value)
    yield "content hash", details.content_hash
    yield "software", ", ".join(f"{name} {' and '.join(found)}" for name, found in details.versions.items())
    yield "committed", f"{(details.first_commit or '')[:19]} to {(details.last_commit or '')[:19]} UTC"
    rate = details.audio_seconds_per_second
    yield "throughput", "not known: the parts were compacted" if rate is None else f"{rate:,.0f} x real time"


def _spread(found: Quartiles | None, form: str) -> str:
    if found is None:
        return "-"
    low, q1, median, q3, high = (
        form.format(value) for value in (found.low, found.q1, found.median, found.q3, found.high)
    )
    return f"{median} median, {q1} to {q3} the middle half, {low} to {high} all"


def _count(count: int, what: str, says: str) -> str:
    return f"{count:,} {what}: {says}" if count else "none"


def _tell_more(count: int, what: str) -> None:
    if count > 0:
        say(f"  ... and {count:,} {what} more: --verbose shows all")
