"""`featstore explore`: a map of a feature set, or of two side by side, as a page or served locally."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featstore.cli.options import HomePath, feature_set_options, note, require_folder_of, say, selection, store_option
from featstore.errors import UsageError
from featstore.formatting import counted, spoken_bytes

__all__ = ["explore"]


@click.command()
@click.argument("path", required=False)
@click.argument("encoder_b", required=False)
@store_option()
@feature_set_options
@click.option(
    "--out",
    type=HomePath(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Output file.  [default: ENCODER[-ENCODER_B]-DATASET-SPLIT.html]",
)
@click.option(
    "--map",
    type=click.Choice(["pca", "umap"]),
    default="pca",
    show_default=True,
    help="Projection of the map; umap needs `pip install 'featstore[umap]'` and takes minutes for many clips.",
)
@click.option(
    "--colour",
    "--color",
    metavar="FIELD",
    help="Field that colours the map.  [default: the label, else the first field with 2 to 50 classes]",
)
@click.option(
    "--points",
    type=click.IntRange(min=2),
    default=50_000,
    show_default=True,
    metavar="N",
    help="Maximum number of clips; more are sampled at random.",
)
@click.option(
    "--data",
    type=HomePath(path_type=Path),
    metavar="DIR",
    help="Folder with a folder of shards for each dataset: adds playback of clips.",
)
@click.option(
    "--audio",
    "n_audio",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --data and --out: number of clips of which the page embeds ten seconds, balanced over classes.  "
    "[default: 40]",
)
@click.option("--serve", is_flag=True, help="Serve the page on 127.0.0.1, with playback of every clip.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=8642,
    show_default=True,
    help="Port of --serve; 0: any free port.",
)
@click.option("--title", metavar="TEXT", help="Title of the page.  [default: DATASET/SPLIT]")
def explore(
    *,
    store: str,
    path: str | None,
    encoder: str | None,
    dataset: str | None,
    split: str | None,
    out: Path | None,
    data: Path | None,
    n_audio: int | None,
    serve: bool,
    port: int,
    **settings: Any,
) -> None:
    """Write a map of the clips of a feature set.

    The map is a self-contained page to view, search and listen to. PATH is ENCODER[/DATASET[/SPLIT]] as in `featstore
    inspect`; it stands for --encoder, --dataset and --split. With ENCODER_B, the page has the maps of both encoders
    side by side, with linked selection.

    \b
    featstore explore logmel/words/test --store S
    featstore explore logmel/words/test --store S --out map.html --data D
    featstore explore logmel/words/test --store S --data D --serve
    featstore explore logmel/words/test mfcc --store S
    """  # noqa: D301 - click takes the character itself
    if serve and out is not None:
        raise UsageError("--out and --serve exclude each other")
    if n_audio is not None and (data is None or serve):
        raise UsageError("--audio needs --data and excludes --serve, which plays every clip")
    require_folder_of(out)
    from featstore import api

    encoder, dataset, split = selection(path, encoder, dataset, split)
    settings |= {"encoder": encoder, "dataset": dataset, "split": split, "data": data}
    if serve:
        with api.explore_server(store, port=port, **settings) as server:
            say(f"{server.url}  (Ctrl-C stops it{'' if data else '; --data adds playback'})")
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                note("stopped", err=True)
        return
    record = api.explore(store, out=out, n_audio=n_audio or 40, **settings)
    sounds = "" if data is None else f", {record.sounds:,} of them with sound"
    if data is not None and record.sounds < record.clips:
        sounds += " (more: --audio N; all: --serve)"
    if record.sounds_skipped:
        sounds += f" ({record.sounds_skipped:,} skipped: changed or missing in --data, or over the size limit)"
    say(f"{record.out}: {counted(record.clips, 'clip')}, {spoken_bytes(record.bytes)}{sounds}")
