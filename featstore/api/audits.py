"""Public function that proves what a store holds: `audit`."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featstore.api.arguments import StrPath, manifests_of, opened, url_of
from featstore.errors import ManifestError

if TYPE_CHECKING:
    from featstore.api.arguments import AnyEncoder, Tasks
    from featstore.diagnostics.certificate import AuditedScore, AuditFinding, Certificate
    from featstore.encoders.encoder import Encoder
    from featstore.records import ScoreRecord
    from featstore.store import FeatureSet, Store
    from featstore.tasks import Manifest

__all__ = ["audit"]


def audit(
    store: Store | StrPath,
    *,
    encoder: AnyEncoder,
    data: StrPath,
    sample: str | int = "1%",
    seed: int | None = None,
    dataset: str | None = None,
    results: StrPath | Sequence[StrPath] = (),
    tasks: Tasks = (),
    arguments: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    device: str = "auto",
    score_tolerance: float | None = None,
    out: StrPath | None = None,
    on_step: Callable[[str], object] | None = None,
) -> Certificate:
    """Prove that a store holds an encoder's vectors, and that scores follow from them.

    The checksums of the feature sets are verified, a random sample of clips is encoded again and compared with the
    stored vectors, windows and labels, and scores are computed again from the store. All layers, pools and options of
    the encoder are audited.

    Parameters
    ----------
    store : Store, str or os.PathLike
    encoder : str, os.PathLike, nn.Module, Encoder or callable
        As of `extract`.
    data : str or os.PathLike
        Folder or URL with one folder of shards per dataset.
    sample : str or int
        Percentage of the clips of each recipe (``"1%"``), or their number.
    seed : int, optional
        Seed of the sample; drawn by the operating system by default. The guarantee holds if the maker of the store did
        not know it. The certificate has it, so that the same sample can be drawn again.
    dataset : str, optional
        Audit this dataset of the store (``"words"``, or ``"words+crop5s"``) alone.
    results : str, os.PathLike, or a sequence of these
        Folders of scores to compute again; scores of other encoders and datasets are listed, and not certified.
    tasks : str, os.PathLike, Manifest, or a sequence of these
        Manifests of the scores that are neither built in nor in `data`.
    arguments, trust_remote_code, device
        As of `extract`.
    score_tolerance : float, optional
        Difference of a score that is accepted; 0.001 by default.
    out : str or os.PathLike, optional
        File for the certificate. Its name should end in ``.certificate.json``: `report` finds it beside the scores.
    on_step : callable, optional
        Takes the name of each step before it starts.

    Returns
    -------
    Certificate
        ``certified``, ``findings``, ``recipes`` with the probability of missing a forgery, ``scores``, ``as_json()``
        and ``write(path)``.

    Raises
    ------
    featstore.errors.EncoderError
        The encoder cannot be loaded, or the store has no vectors of it: a changed checkpoint has another fingerprint.
    featstore.errors.ShardError
        The data folder has none of the sampled shards.
    featstore.errors.UsageError
        `sample`, a task or a folder of results is invalid.
    """
    from featstore.diagnostics.audit import audit_vectors, sets_of_encoder
    from featstore.diagnostics.audit_sample import sample_size
    from featstore.diagnostics.certificate import AuditFinding, Certificate
    from featstore.diagnostics.rescore import SCORE_TOLERANCE
    from featstore.encoders.devices import pick_device
    from featstore.extract.job import software_versions
    from featstore.records import sha256_of
    from featstore.store.verify import verify_store

    step = on_step or (lambda _: None)
    sample_size(sample, 1)  # an invalid size is reported before the encoder is loaded
    tolerance = SCORE_TOLERANCE if score_tolerance is None else score_tolerance
    records, damaged = _records(results)
    manifests = _manifests(tasks, data) if records else {}
    cached = opened(store)
    step("loading the encoder")
    loaded = _loaded(encoder, arguments=dict(arguments or {}), trust_remote_code=trust_remote_code)
    chosen_device = pick_device(device)
    sets = sets_of_encoder(cached, loaded, dataset=dataset)
    seed = secrets.randbits(32) if seed is None else seed
    step("verifying checksums")
    report = verify_store(url_of(store), only=[each.path for each in sets])
    findings = [AuditFinding(kind="checksum", where=each.where, problem=each.problem) for each in report.findings]
    clips = 0

    def on_clip() -> None:
        nonlocal clips
        clips += 1
        step(f"encoding sampled clips ({clips:,} done)")

    step("encoding sampled clips")
    vectors = audit_vectors(
        url_of(store), loaded, sets, data_dir=os.fspath(data), sample=sample, seed=seed, device=chosen_device,
        on_clip=on_clip,
    )  # fmt: skip
    findings += [*vectors.findings, *damaged]
    mine, others = _of_sets(records, sets, manifests, dataset=dataset)
    scores, score_findings = _rescored(cached, mine, manifests, tolerance=tolerance, step=step)
    findings += score_findings
    certificate = Certificate(
        certified=not findings,
        store=cached.url,
        store_sha256=sha256_of([[fs.path, fs.recipe.as_json(), [c.as_json() for c in fs.commits()]] for fs in sets]),
        encoder=loaded.spec,
        seed=seed,
        sample=str(sample),
        recipes=vectors.recipes,
        feature_sets=vectors.feature_sets,
        scores=scores,
        score_tolerance=tolerance,
        other_scores=others,
        findings=tuple(findings),
        device=chosen_device,
        issued_at=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=software_versions(),
    )
    if out is not None:
        certificate.write(out)
    return certificate


def _loaded(encoder: AnyEncoder, *, arguments: Mapping[str, Any], trust_remote_code: bool) -> Encoder:
    """The encoder of a spec, a module or a callable."""
    from featstore.encoders import load_encoder
    from featstore.encoders.encoder import Encoder
    from featstore.encoders.load import load_object

    if isinstance(encoder, str | os.PathLike):
        return load_encoder(os.fspath(encoder), arguments=arguments, trust_remote_code=trust_remote_code)
    if isinstance(encoder, Encoder):
        return encoder
    return load_object(encoder, arguments=arguments, layers=(), pools=())


def _records(results: StrPath | Sequence[StrPath]) -> tuple[tuple[ScoreRecord, ...], list[AuditFinding]]:
    """The newest scores of folders, and a finding for each damaged file."""
    from featstore.diagnostics.certificate import AuditFinding
    from featstore.report import read_results

    folders = [results] if isinstance(results, str | os.PathLike) else list(results)
    if not folders:
        return (), []
    found = read_results(*folders)
    return found.scores, [
        AuditFinding(kind="results", where="results", problem=str(failure)) for failure in found.failures
    ]


def _manifests(tasks: Tasks, data: StrPath) -> dict[str, Manifest]:
    """Manifests by hash: the given ones, those that `pack` wrote to the data folder, and the built-in ones."""
    from featstore.remote import is_url
    from featstore.tasks import builtin_tasks, load_manifest

    found = [] if isinstance(tasks, Sequence) and not tasks else list(manifests_of(tasks).values())
    if not is_url(os.fspath(data)):
        for path in sorted(Path(data).glob("*.toml")):
            try:
                found.append(load_manifest(path))
            except (ManifestError, OSError):  # another file
                continue
    known = (*builtin_tasks(), *found)
    return {each.sha256_with_texts: each for each in known} | {each.sha256: each for each in known}


def _of_sets(
    records: Sequence[ScoreRecord],
    sets: Sequence[FeatureSet],
    manifests: Mapping[str, Manifest],
    *,
    dataset: str | None,
) -> tuple[tuple[ScoreRecord, ...], tuple[str, ...]]:
    """Scores that were computed from audited feature sets, and the names of the others."""
    audited = {fs.fingerprint for fs in sets}

    def is_mine(record: ScoreRecord) -> bool:
        manifest = manifests.get(record.manifest_sha256)
        elsewhere = dataset is not None and manifest is not None and manifest.feature_dataset != dataset
        return record.fingerprint in audited and not elsewhere

    mine = tuple(filter(is_mine, records))
    others = (each for each in records if not is_mine(each))
    return mine, tuple(f"{each.task} by {each.encoder}@{each.fingerprint}" for each in others)


def _rescored(
    store: Store,
    records: Sequence[ScoreRecord],
    manifests: Mapping[str, Manifest],
    *,
    tolerance: float,
    step: Callable[[str], object],
) -> tuple[tuple[AuditedScore, ...], list[AuditFinding]]:
    from featstore.diagnostics.rescore import rescore

    results = list(
        rescore(store, records, manifests, tolerance=tolerance, on_score=lambda name: step(f"scoring {name}"))
    )
    return tuple(score for score, _ in results), [finding for _, finding in results if finding is not None]
