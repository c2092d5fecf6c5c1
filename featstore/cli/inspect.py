"""`featstore inspect`: the feature sets of a store and their provenance."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING

import click

from featstore.cli.completion import complete_folders
from featstore.cli.options import (
    emit_json,
    feature_set_options,
    is_store,
    json_option,
    parse_store,
    say,
    say_json,
    selection,
    store_option,
)
from featstore.errors import UsageError
from featstore.formatting import counted, lasting, printable, spoken_bytes

if TYPE_CHECKING:
    from featstore.diagnostics import Health
    from featstore.store import Store
    from featstore.store.summary import Details, Quartiles, Summary

__all__ = ["inspect"]

_SHOWN = 12


@click.command()
@click.argument("words", metavar="[STORE] [PATH]", nargs=-1, shell_complete=complete_folders)
@store_option("Folder or URL of the store. Same as STORE.", required=False)
@feature_set_options
@click.option(
    "--health",
    is_flag=True,
    help="Health of each embedding space: norms, effective rank, anisotropy, dead dimensions, hubness, near-duplicates "
    "in other splits.",
)
@click.option("--label", metavar="FIELD", help="With --health: separability of the classes of this field.")
@click.option(
    "--near",
    type=click.FloatRange(min=0, max=1, min_open=True),
    metavar="COSINE",
    help="With --health: least cosine of two whitened vectors that are near-duplicates.  [default: 0.98]",
)
@click.option("--verbose", "-v", is_flag=True, help="Show everything about each feature set, and complete lists.")
@json_option
def inspect(
    *,
    words: tuple[str, ...],
    store: str | None,
    encoder: str | None,
    dataset: str | None,
    split: str | None,
    health: bool,
    label: str | None,
    near: float | None,
    verbose: bool,
    as_json: bool,
) -> None:
    """List the feature sets of a store, or show one in detail.

    STORE is a folder or URL, and may be given by --store or FEATSTORE_STORE instead. PATH is ENCODER[/DATASET[/SPLIT]]
    as in the table; it stands for --encoder, --dataset and --split.

    \b
    featstore inspect S                    every feature set
    featstore inspect S logmel/words       those of one encoder and dataset
    featstore inspect S logmel/words/test  recipe, provenance, statistics
    featstore inspect S logmel/words --health --label word
                                           health, leakage between splits
    """  # noqa: D301 - click takes the character itself
    from featstore import api

    url, path = _store_and_path(words, store)
    opened = api.open(url)
    encoder, dataset, split = selected = selection(path, encoder, dataset, split)
    if health:
        found = api.health(opened, encoder=encoder, dataset=dataset, split=split, label=label, near_cosine=near)
        _print_health(found, with_label=label is not None, verbose=verbose, as_json=as_json)
        return
    if label is not None or near is not None:
        raise UsageError("--label and --near need --health")
    summaries = api.inspect(opened, encoder=encoder, dataset=dataset, split=split)
    if verbose or (len(summaries) == 1 and any(selected)):
        details = api.inspect(opened, encoder=encoder, dataset=dataset, split=split, details=True)
        if as_json:
            emit_json(details)
            return
        for each in details:
            _print_details(each, limit=None if verbose else _SHOWN, texts=_texts_of(opened, each.summary))
    elif as_json:
        say_json([asdict(each) for each in summaries])
    else:
        _print_table(summaries, url=opened.url)
        for summary in {(each.encoder, each.fingerprint): each for each in summaries}.values():
            if texts := _texts_of(opened, summary):
                say(f"  texts by {summary.encoder}@{summary.fingerprint}: {texts}")
        if not any(selected):
            _print_foreign(opened.foreign())


def _store_and_path(words: Sequence[str], store_url: str | None) -> tuple[str, str | None]:
    """The store and the path of the command line; a store that is given as an argument replaces FEATSTORE_STORE."""
    context = click.get_current_context()
    by_option = store_url if context.get_parameter_source("store") is click.core.ParameterSource.COMMANDLINE else None
    rest = list(words)
    if not by_option and rest and (store_url is None or len(rest) > 1 or is_store(rest[0])):
        parameter = next(each for each in context.command.params if each.name == "store")
        store_url = parse_store(context, parameter, rest.pop(0))
    if store_url is None:
        raise click.UsageError("Missing argument 'STORE': a folder or URL, or --store, or FEATSTORE_STORE.")
    if len(rest) > 1:
        raise click.UsageError(f"Got unexpected extra argument ({rest[1]})")
    return store_url, rest[0] if rest else None


def _print_table(summaries: Sequence[Summary], *, url: str) -> None:
    if not summaries:
        say(f"{url}: an empty store")
        return
    from featstore.cli.tables import plain_table, show

    # Columns that hold nothing new are omitted, so that the table fits 80 columns: the footer counts skipped clips.
    has_windows = any(s.windows != s.clips for s in summaries)
    has_skipped = any(s.left_out for s in summaries)
    header = ["feature set", "clips", *(["windows"] if has_windows else []), "dim", "frames", "hours", "size"]
    header += ["skipped"] if has_skipped else []
    rows: list[list[str]] = []
    for encoder, of_encoder in groupby(summaries, key=lambda s: f"{s.encoder}@{s.fingerprint}"):
        rows.append([encoder, *[""] * (len(header) - 1)])
        rows += [
            [
                f"  {s.dataset}/{s.split}",
                f"{s.clips:,}",
                *([f"{s.windows:,}"] if has_windows else []),
                str(s.dim),
                "0" if s.frames is None else f"{s.frames:,}",
                _hours(s.audio_seconds),
                spoken_bytes(s.bytes),
                *([f"{s.left_out:,}"] if has_skipped else []),
            ]
            for s in of_encoder
        ]
    show(plain_table(header, rows))
    audio_seconds, n_bytes = sum(s.audio_seconds for s in summaries), sum(s.bytes for s in summaries)
    say(
        f"  {counted(len(summaries), 'feature set')}, {lasting(audio_seconds)}, {spoken_bytes(n_bytes)}, "
        f"{counted(sum(s.left_out for s in summaries), 'clip')} skipped"
    )


def _print_foreign(paths: Sequence[str]) -> None:
    if paths:
        more = f" and {len(paths) - _SHOWN:,} more" if len(paths) > _SHOWN else ""
        say(f"  {len(paths):,} not of featstore, ignored: {', '.join(map(printable, paths[:_SHOWN]))}{more}")


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.2f}" if hours >= 1 else f"{hours:.2g}"


def _print_health(found: Sequence[Health], *, with_label: bool, verbose: bool, as_json: bool) -> None:
    from featstore.cli.tables import lines_below, plain_table, show
    from featstore.diagnostics import health_notes

    if as_json:
        emit_json(found)
        return
    header = ["feature set", "windows", "norm", "rank", "anisotropy", "dead", "repeated", "hubness", "orphans"]
    header += ["separable"] if with_label else []
    show(plain_table([*header, "near-duplicates"], [_health_row(each, with_label=with_label) for each in found]))
    show(lines_below(health_notes(found, with_label=with_label)))
    pairs = [(each, pair) for each in found if each.overlap is not None for pair in each.overlap.pairs]
    if pairs:
        say(f"  Near-duplicates in other splits, {len(pairs):,} listed:")
        for each, pair in pairs if verbose else pairs[:_SHOWN]:
            say(f"    {pair.cosine:.4f}  {each.path}: {printable(pair.clip)} = {printable(pair.other)}")
        if not verbose:
            _print_more(len(pairs) - _SHOWN, "pairs")


def _health_row(found: Health, *, with_label: bool) -> tuple[str, ...]:
    space, overlap = found.space, found.overlap
    apart = space.separability
    separable = "-" if apart is None else f"{apart.centroid_accuracy:.2f} ({apart.largest_class:.2f} chance)"
    return (
        found.path,
        f"{found.windows:,}" + ("" if space.rows == found.windows else f" ({space.rows:,} sampled)"),
        _number(space.norm_median, "{:#.4g}") + ("" if not space.not_finite else f" ({space.not_finite:,} not finite)"),
        f"{_number(space.effective_rank, '{:.1f}')} of {space.dim}",
        _number(space.anisotropy, "{:.2f}"),
        f"{len(space.dead_dimensions):,}",
        f"{space.n_duplicate_dimensions:,}",
        "-" if space.hubness is None else f"{space.hubness.skewness:.2f}",
        "-" if space.hubness is None else f"{space.hubness.orphans:.0%}",
        *([separable] if with_label else []),
        "no other split"
        if overlap is None
        else f"{overlap.clips:,}"
        + ("" if overlap.searched == overlap.total else f" ({overlap.searched:,} windows sampled)"),
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _texts_of(store: Store, summary: Summary) -> str:
    """Numbers of stored texts by the text tower of a feature set's encoder: ``75 of esc50``."""
    counts = store.text_counts(f"{summary.encoder}@{summary.fingerprint}")
    return ", ".join(f"{count:,} of {task}" for task, count in counts.items())


def _print_details(details: Details, *, limit: int | None, texts: str) -> None:
    from featstore.cli.tables import facts_table, plain_table, show

    say(details.summary.path)
    facts = [*_facts(details), *([("texts", texts)] if texts else []), *_provenance(details)]
    show(facts_table(facts))
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
    show(plain_table(("shard", "sha256", "clips", "windows", "audio s", "skipped", "committed (UTC)", "seconds"), rows))
    _print_more(len(details.shards) - len(shards), "shards")
    if details.skipped:
        _print_skipped(details, limit=limit)


def _print_skipped(details: Details, *, limit: int | None) -> None:
    say(f"  {counted(len(details.skipped), 'clip')} skipped:")
    reasons = Counter(clip.reason for clip in details.skipped)
    for reason, count in reasons.most_common(limit):
        clips = [f"{clip.shard}/{clip.key}" for clip in details.skipped if clip.reason == reason]
        named = ", ".join(map(printable, clips[: limit and 3]))
        say(f"    {count:,}  {printable(reason).rstrip('.')}: {named}" + (", ..." if limit and count > 3 else ""))
    if limit is not None:
        _print_more(len(reasons) - limit, "reasons")


def _facts(details: Details) -> Iterator[tuple[str, str]]:
    summary, recipe = details.summary, details.recipe
    frames = "not stored" if summary.frames is None else f"{summary.frames:,} x {summary.dim} {recipe['frame_dtype']}"
    yield "clips", f"{summary.clips:,} in {counted(summary.windows, 'window')}, {lasting(summary.audio_seconds)}"
    yield "utterance", f"{summary.windows:,} x {summary.dim} float32"
    hop = f"; hop {recipe['hop_seconds'] * 1000:g} ms" if recipe["hop_seconds"] else ""  # 0 if it is not known
    yield "frames", f"{frames}{hop}"
    n_parts = len({each.part for each in details.shards})
    yield "size", f"{spoken_bytes(summary.bytes)} in {counted(n_parts, 'part')}"
    yield "window seconds", _spread(details.window_seconds, "{:.2f}")
    if summary.frames is not None:
        yield "frames per window", _spread(details.frame_lengths, "{:,.0f}")
    yield "norms", _spread(details.norms, "{:.4g}")
    yield "not finite", _count(details.windows_not_finite, "windows", "NaN or infinity in the utterance vector")
    yield "repeated vectors", _count(details.repeated_vectors, "windows", "bit-identical to an earlier window")
    yield "repeated keys", _count(details.repeated_keys, "windows", "run `featstore verify`")


def _provenance(details: Details) -> Iterator[tuple[str, str]]:
    words = details.recipe["encoder_identity"].get("imported")
    if words is not None:
        yield "imported from", str(words) or "unknown"
    for name, value in details.recipe.items():
        if words is not None and name in ("encoder_identity", "sample_rate_hz", "padding", "precision", "resampler"):
            continue  # not known of imported embeddings
        if name == "encoder_identity":
            for field, what in value.items():
                yield f"encoder {field.replace('_', ' ')}", what if isinstance(what, str) else json.dumps(what)
        elif name not in ("encoder", "dim", "hop_seconds", "frame_dtype"):
            yield name.replace("_", " "), str(value)
    yield "content hash", details.content_hash
    yield "software", ", ".join(f"{name} {' and '.join(found)}" for name, found in details.versions.items())
    yield "committed", f"{(details.first_commit or '')[:19]} to {(details.last_commit or '')[:19]} UTC"
    if words is not None:
        return
    rate = details.audio_seconds_per_second
    yield "throughput", "unknown, because the parts were compacted" if rate is None else f"{rate:,.0f} x real time"


def _spread(found: Quartiles | None, form: str) -> str:
    if found is None:
        return "-"
    low, q1, median, q3, high = (
        form.format(value) for value in (found.low, found.q1, found.median, found.q3, found.high)
    )
    return f"median {median}, quartiles {q1} to {q3}, range {low} to {high}"


def _count(count: int, what: str, meaning: str) -> str:
    return f"{count:,} {what}: {meaning}" if count else "0"


def _print_more(count: int, what: str) -> None:
    if count > 0:
        say(f"  ... and {count:,} {what} more: --verbose shows all")
