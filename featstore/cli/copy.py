"""`featstore copy`: feature sets from one store to another."""

from __future__ import annotations

import click

from featstore.cli.completion import complete_folders
from featstore.cli.options import emit_json, feature_set_options, json_option, parse_store, say
from featstore.wording import counted, spoken_bytes

__all__ = ["copy"]


@click.command()
@click.argument("source", metavar="SRC", callback=parse_store, shell_complete=complete_folders)
@click.argument("target", metavar="DST", callback=parse_store, shell_complete=complete_folders)
@click.option("--only", type=click.Choice(["utterance"]), help="Leave the frames where they are.")
@feature_set_options
@json_option
def copy(
    *,
    source: str,
    target: str,
    only: str | None,
    encoder: str | None,
    dataset: str | None,
    split: str | None,
    as_json: bool,
) -> None:
    """Copy feature sets from the store SRC to the store DST: folders, or URLs of any kind.

    Every object is checked on its way, and a part is there whole or not at all: a copy that was interrupted goes on
    where it was. What DST has already, by the content of the shards, is not copied again; other content of a shard is
    replaced.
    """
    from featstore.cli.console.progress import counting
    from featstore.store.copying import copy_store

    with counting("parts in place") as tick:
        records = copy_store(
            source,
            target,
            only="utterance" if only else "everything",
            encoder=encoder,
            dataset=dataset,
            split=split,
            on_part=lambda _: tick(),
        )
    if as_json:
        emit_json(records)
        return
    for record in records:
        say(
            f"{record.path}: {record.copied:,} of {counted(record.parts, 'part')} copied "
            f"({spoken_bytes(record.bytes)}), {record.there:,} there already"
            + (f", {record.replaced:,} in place of other content" if record.replaced else "")
        )
