"""The public Python API: everything that the command line does, under the same names.

Import it as ``import featstore as fs``: each function here is an attribute of `featstore`, and nothing is imported
before it is used. A task is a name of `featstore tasks`, a path of a manifest or a `featstore.tasks.Manifest`; an
encoder is a name in the store where embeddings are read, and a spec, a ``torch.nn.Module`` or a callable that returns
one where they are computed. A path is a ``str`` or an ``os.PathLike``, and a store may be the path or an open `Store`.

One task or encoder that fails never stops the others: failures are logged by ``logging.getLogger("featstore")`` and are
part of the result. What is wrong with the call itself is raised, as `featstore.errors.UsageError`.

Examples
--------
Synthesise a little labelled audio, extract it with two encoders, score both on two tracks and compare them:

>>> import tempfile, featstore as fs
>>> from featstore.demo import Collection, make_shards
>>> folder = tempfile.mkdtemp()
>>> clips = {"train": 48, "valid": 12, "test": 24}
>>> notes = Collection(dataset="demo-instruments", clips=clips, shards=dict.fromkeys(clips, 1))
>>> _ = make_shards(f"{folder}/data", collections=[notes])
>>> data, store = f"{folder}/data", f"{folder}/s.zarr"
>>> extracted = fs.extract("demo-instruments", encoder=["logmel", "mfcc"], data=data, store=store)
>>> len(extracted), extracted.failures
(6, ())
>>> store = fs.open(store)
>>> len(store), "logmel/demo-instruments/train" in store
(6, True)
>>> X, y = store["logmel/demo-instruments/train"].xy("instrument")
>>> X.shape, y.shape
((48, 128), (48,))
>>> scores = fs.probe("demo-instruments", store=store)
>>> scores += fs.retrieve("demo-instruments", store=store, encoder="mfcc", k=3)
>>> [(score.track, score.encoder) for score in scores], scores.failures
([('A', 'logmel'), ('A', 'mfcc'), ('B', 'mfcc')], ())
>>> fs.compare(scores, "logmel", "mfcc").differences[0].task
'demo-instruments'
>>> fs.query("instruments-test-00003", store=store, encoder="mfcc", k=2).hits[0].dataset
'demo-instruments'
>>> [each.split for each in fs.health(store, encoder="logmel")]
['test', 'train', 'valid']
>>> fs.report(scores, f"{folder}/board.md").name
'board.md'
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featstore.api.audio import pack
from featstore.api.audits import audit
from featstore.api.embeddings import Extracted, check, extract, fetch
from featstore.api.imports import import_embeddings
from featstore.api.maps import explore, explore_server
from featstore.api.scores import compare, knn_arrays, measure_arrays, probe, probe_arrays, report, retrieve
from featstore.api.space import diff, health, inspect, query
from featstore.api.stores import compact, copy, export, gc, open, rename, verify

if TYPE_CHECKING:
    from featstore.encoders import load_encoder
    from featstore.extract.import_embeddings import Imported
    from featstore.report.scores import Scores

__all__ = [
    "Extracted",
    "Imported",
    "Scores",
    "audit",
    "check",
    "compact",
    "compare",
    "copy",
    "diff",
    "explore",
    "explore_server",
    "export",
    "extract",
    "fetch",
    "gc",
    "health",
    "import_embeddings",
    "inspect",
    "knn_arrays",
    "load_encoder",
    "measure_arrays",
    "open",
    "pack",
    "probe",
    "probe_arrays",
    "query",
    "rename",
    "report",
    "retrieve",
    "verify",
]

_ELSEWHERE = {
    "Imported": "featstore.extract.import_embeddings",
    "Scores": "featstore.report.scores",
    "load_encoder": "featstore.encoders",
}


def __getattr__(name: str) -> Any:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_ELSEWHERE[name]), name)
