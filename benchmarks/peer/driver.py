"""Runs in the environment of X-ARES: calls the function that is named, with JSON from stdin, and answers with JSON.

What is timed are X-ARES's own methods. It imports nothing of featstore.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from xares.audiowebdataset import create_embedding_webdataset
from xares.metrics import ALL_METRICS
from xares.models.simple import Mlp
from xares.task import TaskConfig, XaresTask
from xares.trainer import Trainer

__all__ = ["mean_average_precision", "score", "segment_f1"]


# --- actions


def score(
    *,
    root: str,
    task: dict[str, Any],
    encoder: dict[str, Any],
    stages: Sequence[str],
    seeds: Sequence[int],
    threads: Sequence[int] = (),
) -> dict[str, Any]:
    """Encode where ``stages`` has ``encode``, then train and search once for each seed: scores and seconds.

    ``threads`` are torch's, by seed, where they are not to be the two of X-ARES.
    """
    found: dict[str, Any] = {stage: [] for stage in stages}
    made = _task(root, task, encoder, seed=seeds[0])
    if "encode" in stages:
        (made.env_dir / made.config.xares_settings.audio_ready_filename).touch()
        found["encode"].append(_timed(made.make_encoded_tar))
    made.encoded_ready_path.touch()
    for at, seed in enumerate(seeds):
        made = _task(root, task, encoder, seed=seed)
        torch.set_num_threads(threads[at] if threads else made.config.torch_num_threads)
        shutil.rmtree(made.ckpt_dir, ignore_errors=True)
        made.ckpt_dir.mkdir(parents=True)
        for stage, run in (("mlp", made.run_mlp), ("knn", made.run_knn)):
            if stage in stages:
                found[stage].append({"seed": seed, **_timed(run)})
    return found


def segment_f1(
    *, root: str, task: dict[str, Any], encoder: dict[str, Any], head: str, averages: Sequence[str]
) -> dict[str, float]:
    """Segment F1 of a given head on the test split, through the trainer's own inference."""
    made = _task(root, task, encoder, seed=42)
    config = made.config
    with np.load(head) as arrays:
        weight, bias = torch.from_numpy(arrays["weight"]), torch.from_numpy(arrays["bias"])
    model = Mlp(in_features=weight.shape[1], out_features=weight.shape[0], criterion=config.criterion)
    model.fc.weight.data, model.fc.bias.data = weight, bias
    found = {}
    for average in averages:
        trainer = Trainer(
            model, metric=f"segmentf1_{average}", metric_args=config.metric_args, task_type=config.task_type
        )
        loader = create_embedding_webdataset(
            [made.encoded_tar_path_of_split[config.test_split].as_posix()],
            batch_size=config.batch_size_valid,
            num_workers=config.num_validation_workers,
            label_processor=made.label_processor,
            training=False,
        )
        found[average] = float(trainer.run_inference(loader))
    return found


def mean_average_precision(*, predictions: str, batch_size: int) -> float:
    """MAP of given logits and label sets."""
    metric = ALL_METRICS["mAP"].metric()
    with np.load(predictions) as arrays:
        logits, labels = torch.from_numpy(arrays["logits"]), torch.from_numpy(arrays["labels"])
    for at in range(0, len(logits), batch_size):
        metric.update((logits[at : at + batch_size], labels[at : at + batch_size]))
    return float(metric.compute())


# --- what they have in common


class GivenEncoder(torch.nn.Module):
    """Placeholder for an encoder whose tars exist."""

    def __init__(self, *, output_dim: int, hop_size_in_ms: float) -> None:
        super().__init__()
        self.sampling_rate, self.output_dim, self.hop_size_in_ms = 16_000, output_dim, hop_size_in_ms


def _encoder(given: dict[str, Any]) -> torch.nn.Module:
    if "file" not in given:
        return GivenEncoder(**given)
    spec = importlib.util.spec_from_file_location("an_encoder", given["file"])
    if spec is None or spec.loader is None:
        raise ValueError(f"no Python file: {given['file']}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, given["class"])()


def _task(root: str, given: dict[str, Any], encoder: dict[str, Any], *, seed: int) -> XaresTask:
    """A task of X-ARES by name, or one with classes that are given."""
    built = _encoder(encoder)
    if "builtin" in given:
        name = given["builtin"]
        config = getattr(importlib.import_module(f"tasks.{name}_task"), f"{name}_config")(built)
    else:
        number_of = {name: number for number, name in enumerate(given["classes"])}
        config = TaskConfig(
            name=given["name"],
            encoder=built,
            label_processor=lambda meta: number_of[meta["label"]],
            output_dim=len(number_of),
            k_fold_splits=given.get("folds"),
            learning_rate=given["learning_rate"],
            epochs=given["epochs"],
            batch_size_train=given["batch_size"],
            crop_length=given.get("crop_seconds"),
        )
        if "shards" in given:
            config.audio_tar_name_of_split = given["shards"]
    config.env_root, config.private, config.seed = root, True, seed
    config.torch_num_threads = given.get("threads", config.torch_num_threads)
    return XaresTask(config)


def _timed(run: Callable[[], Any]) -> dict[str, float]:
    began = time.perf_counter()
    answer = run()
    seconds = time.perf_counter() - began
    return {"seconds": seconds} if answer is None else {"seconds": seconds, "score": float(answer[0])}


def _main() -> None:
    """Everything that X-ARES logs goes to stderr."""
    answer, sys.stdout = sys.stdout, sys.stderr
    function = {each.__name__: each for each in (score, segment_f1, mean_average_precision)}[sys.argv[1]]
    print(json.dumps(function(**json.load(sys.stdin))), file=answer)


if __name__ == "__main__":
    _main()
