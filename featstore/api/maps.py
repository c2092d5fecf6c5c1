"""Maps of feature sets: a page, and a local server of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from featstore.api.arguments import StrPath, opened
from featstore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featstore.explore.audio import ClipAudio
    from featstore.explore.page import Explorer
    from featstore.explore.serve import PageServer
    from featstore.store import FeatureSet, Store

__all__ = ["ExploreRecord", "explore", "explore_server"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExploreRecord:
    """Result of `explore`.

    Attributes
    ----------
    out : Path
        The page.
    clips, bytes : int
        Clips of the map, and the size of the page.
    sounds, sounds_skipped : int
        Clips that the page plays, and chosen clips that it does not: changed or missing in the data, or too large.
    """

    out: Path
    clips: int
    bytes: int
    sounds: int = 0
    sounds_skipped: int = 0


def explore(
    store: Store | StrPath,
    *,
    encoder: str | None = None,
    encoder_b: str | None = None,
    dataset: str | None = None,
    split: str | None = None,
    out: StrPath | None = None,
    map: Literal["pca", "umap"] = "pca",
    colour: str | None = None,
    points: int = 50_000,
    data: StrPath | None = None,
    n_audio: int = 40,
    title: str | None = None,
) -> ExploreRecord:
    """Write a map of the clips of a feature set: a self-contained page to view, search and listen to.

    Parameters
    ----------
    store : Store, str or os.PathLike
    encoder, dataset, split : str, optional
        Select the feature set; what the store has only one of need not be named.
    encoder_b : str, optional
        A second encoder: the page has the maps of both side by side, of the clips that both have. A clip that is
        selected in one is selected in the other, and a class has the same colour in both.
    out : str or os.PathLike, optional
        The page; ``ENCODER[-ENCODER_B]-DATASET-SPLIT.html`` in the current folder by default.
    map : "pca" or "umap"
        Projection.
    colour : str, optional
        Field that colours the map; by default the label, else the first field with 2 to 50 classes.
    points : int
        Maximum number of clips; more are sampled at random.
    data : str or os.PathLike, optional
        Folder with a folder of shards for each dataset: adds playback of clips.
    n_audio : int
        Number of clips of which the page embeds ten seconds, balanced over classes.
    title : str, optional
        Title of the page; ``DATASET/SPLIT`` by default.

    Returns
    -------
    ExploreRecord

    Raises
    ------
    featstore.errors.UnknownFeatureSet, featstore.errors.AmbiguousSelection
        No feature set matches, or several do.
    featstore.errors.LabelError
        No clip has the field `colour`.
    featstore.errors.UsageError
        A library of the page or of the projection is not installed, or there are fewer than two clips.
    """
    from featstore.explore.audio import embed
    from featstore.explore.page import render_map
    from featstore.files import write_whole

    sets = _sets(store, encoder=encoder, encoder_b=encoder_b, dataset=dataset, split=split)
    explorer, audio = _explorer(sets, map=map, colour=colour, points=points, data=data)
    path = Path(_file_name(*(fs.path for fs in sets)) if out is None else out)
    found = None if audio is None else embed(audio, explorer.points.numbers, explorer.groups, most=n_audio)
    page = render_map(explorer, audio=None if found is None else dict(found.uris), title=title)
    write_whole(path, page)
    return ExploreRecord(
        out=path,
        clips=len(explorer.points),
        bytes=len(page.encode()),
        sounds=0 if found is None else len(found.uris),
        sounds_skipped=0 if found is None else found.wanted - len(found.uris),
    )


def explore_server(
    store: Store | StrPath,
    *,
    encoder: str | None = None,
    encoder_b: str | None = None,
    dataset: str | None = None,
    split: str | None = None,
    port: int = 8642,
    map: Literal["pca", "umap"] = "pca",
    colour: str | None = None,
    points: int = 50_000,
    data: StrPath | None = None,
    title: str | None = None,
) -> PageServer:
    """Open a local server of the page of `explore`, which plays every clip; its ``serve_forever`` answers requests.

    Parameters
    ----------
    port : int
        Port on the loopback interface; 0 chooses a free one.
    store, encoder, encoder_b, dataset, split, map, colour, points, data, title
        As of `explore`.

    Returns
    -------
    PageServer
        A context manager with ``url``, as `http.server.HTTPServer`.

    Raises
    ------
    featstore.errors.UsageError
        The port cannot be opened. Other errors are those of `explore`.
    """
    from featstore.explore.page import render_map
    from featstore.explore.serve import LOOPBACK, PageServer

    sets = _sets(store, encoder=encoder, encoder_b=encoder_b, dataset=dataset, split=split)
    explorer, audio = _explorer(sets, map=map, colour=colour, points=points, data=data)
    try:
        return PageServer(render_map(explorer, audio=audio, title=title), audio, port=port)
    except OSError as error:
        raise UsageError(f"cannot serve at {LOOPBACK}:{port}: {error.strerror}; --port 0: a free port") from error


def _sets(
    store: Store | StrPath, *, encoder: str | None, encoder_b: str | None, dataset: str | None, split: str | None
) -> list[FeatureSet]:
    """The selected feature set, and that of the second encoder for the same dataset and split."""
    cached = opened(store)
    fs = cached.select(encoder=encoder, dataset=dataset, split=split)
    if encoder_b is None:
        return [fs]
    return [fs, cached.select(encoder=encoder_b, dataset=fs.dataset, split=fs.split)]


def _explorer(
    sets: Sequence[FeatureSet], *, map: Literal["pca", "umap"], colour: str | None, points: int, data: StrPath | None
) -> tuple[Explorer, ClipAudio | None]:
    from featstore.explore.audio import ClipAudio
    from featstore.explore.map import take_common_points, take_points
    from featstore.explore.page import explore

    audio = None if data is None else ClipAudio(sets[0], Path(data))
    if len(sets) == 1:
        return explore(take_points(sets[0], max_points=points), method=map, colour=colour), audio
    a, b = take_common_points(*sets, max_points=points)
    return explore(a, b, method=map, colour=colour), audio


def _file_name(*paths: str) -> str:
    """File name of the page, made of the names of the groups; their documents are untrusted text.

    >>> _file_name("logmel@3f9c2a71/words/train")
    'logmel-words-train.html'
    >>> _file_name("logmel@3f9c2a71/words/train", "mfcc@0b1e7d42/words/train")
    'logmel-mfcc-words-train.html'
    """
    encoders = [path.partition("@")[0] for path in paths]
    return "-".join((*encoders, *paths[0].split("/")[1:])) + ".html"
