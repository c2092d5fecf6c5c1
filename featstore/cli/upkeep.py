"""`featstore verify`, `gc` and `compact`: the upkeep of a store."""

from __future__ import annotations

import click

from featstore.cli.options import emit_json, json_option, say, store_option
from featstore.wording import counted, redacted, spoken_bytes

__all__ = ["compact", "gc", "verify"]


@click.command()
@store_option
@click.option("--repair", is_flag=True, help="Drop damaged parts (the next extract makes them again), mend documents.")
@json_option
def verify(*, store_url: str, repair: bool, as_json: bool) -> None:
    """Read everything in a store through its checksums, and name each damaged part.

    Exits with 1 if anything is wrong that was not repaired.
    """
    from featstore.cli.console.progress import counting
    from featstore.store.repair import repair_store
    from featstore.store.verify import verify_store

    read, shown = (repair_store if repair else verify_store), redacted(store_url)
    with counting("parts verified") as tick:
        report = read(store_url, on_part=lambda _: tick())
    if as_json:
        emit_json([report])
    else:
        for finding in report.findings:
            done = f" [repaired: {finding.remedy}]" if finding.repaired else ""
            say(f"{finding.where or shown}: {finding.problem}{done}")
        state = "sound" if not report.findings else "repaired" if report.sound else "DAMAGED"
        say(
            f"{shown}: {state}; {counted(report.parts, 'part')}, {counted(report.objects, 'object')}, "
            f"{spoken_bytes(report.bytes_read)} read, {counted(len(report.findings), 'finding')}"
        )
        if not repair and report.repairable:
            say(
                f"run `featstore verify --store {shown} --repair` to drop or mend what is damaged, then the same "
                "`featstore extract` again"
            )
    if not report.sound:
        raise click.exceptions.Exit(1)


@click.command()
@store_option
@json_option
def gc(*, store_url: str, as_json: bool) -> None:
    """Delete superseded parts and what killed runs left."""
    from featstore.store.maintenance import gc_store

    records = gc_store(store_url)
    if as_json:
        emit_json(records)
        return
    for record in records:
        for name in record.deleted:
            say(f"deleted {record.path}/{name}" if record.path else f"deleted {name}")
        for name in record.left:
            say(f"left {record.path}/{name}, which featstore did not write")
    say(f"{redacted(store_url)}: {sum(len(record.deleted) for record in records)} deleted")


@click.command()
@store_option
@click.option(
    "--part-megabytes", type=click.FloatRange(min=1), default=256.0, show_default=True, help="Size to aim at."
)
@json_option
def compact(*, store_url: str, part_megabytes: float, as_json: bool) -> None:
    """Make one part of many small ones that stand together. Nothing is encoded again afterwards."""
    from featstore.store.maintenance import compact_store

    records = compact_store(store_url, part_bytes=round(part_megabytes * 1e6))
    if as_json:
        emit_json(records)
        return
    for record in records:
        say(f"{record.path}: {record.parts_before} parts are now {record.parts_after}")
    if not records:
        say(f"{redacted(store_url)}: nothing to do")
