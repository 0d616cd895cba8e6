"""Evaluation of a model on disk, a run or a Hugging Face folder: what `eval.py` does."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp

from zoo import checkpoint, hosts, sharding
from zoo.config import Config
from zoo.data import eval_batches, prepare
from zoo.training.evaluate import evaluate, make_eval_step
from zoo.training.layout import Layout, find_layout
from zoo.training.run import compute_dtype
from zoo.training.settings import Settings, from_config


def measure(
    path: str | os.PathLike,
    config: Any = None,
    split: str = "validation",
    batches: int | None = None,
    which: Literal["best", "latest"] = "latest",
    cache_dir: str | os.PathLike | None = None,
    mesh: str | None = None,
    rules: str | None = None,
) -> dict:
    """Measures a model on a split, as plain JSON values.

    Args:
        path: a run's working directory, or a Hugging Face folder.
        config: settings whose data, dtype, mesh and rules to use; a run has its own.
        split: of the data.
        batches: at most so many; all if None.
        which: checkpoint of a run.
        cache_dir: where prepared data is kept; `zoo.data.default_cache_dir()` if None.
        mesh: where to measure, instead of on the mesh of the settings.
        rules: a table for it, instead of theirs.

    Raises:
        ValueError: no such model, no such split, or no data to use; or the mesh does not fit.
    """
    settings = _settings(Path(path), config)
    said = {name: value for name, value in (("mesh", mesh), ("rules", rules)) if value is not None}
    settings = dataclasses.replace(settings, **said)
    layout = find_layout(settings)
    sharding.batch_sharding(layout.mesh, layout.rules, settings.data.batch)
    model_config, params, tokenizer = _load(Path(path), which, layout)
    layout.check(model_config, settings.data.batch, settings.data.window)
    data = settings.data
    if tokenizer is not None:
        data = dataclasses.replace(data, tokenizer=str(tokenizer))
    data = prepare(data, cache_dir)
    if data.vocab_size > model_config.vocab_size:
        raise ValueError(
            f"the tokenizer has {data.vocab_size} tokens and {path} {model_config.vocab_size}: put "
            "the model's own tokenizer beside it"
        )
    found = eval_batches(data, split, limit=batches, **hosts.share())
    model = layout.model(model_config, dtype=compute_dtype(settings.dtype))
    stats = data.splits[split]
    bytes_per_target = stats.bytes / stats.targets
    with layout.use():
        batches = map(layout.place, found)
        report = evaluate(make_eval_step(model), params, batches, model_config, bytes_per_target)
    about = {"model": str(path), "split": split, "window": data.window}
    return about | {"corpus_sha256": data.corpus_sha256} | report.to_json()


def _settings(path: Path, config: Any) -> Settings:
    """Those of `config`, or the run's own."""
    if not path.is_dir():
        raise ValueError(f"{path} is no folder: name a run's working directory or a model's folder")
    if config is not None:
        return from_config(config)
    tree = checkpoint.read_run(path)["settings"] if checkpoint.is_run(path) else None
    if tree is None:
        raise ValueError(f"{path} is no run, so it does not say on which text: add --config=FILE")
    return from_config(tree)


def _load(
    path: Path, which: Literal["best", "latest"], layout: Layout
) -> tuple[Config, dict, Path | None]:
    """Config, parameters in float32, and the folder of the tokenizer if any."""
    if checkpoint.is_run(path):
        return checkpoint.load_run(path, which, layout.mesh, layout.rules)
    from zoo.hf.load import load

    found = load(path, layout.mesh, layout.rules, dtype=jnp.float32)
    return found.config, found.params, path if found.tokenizer is not None else None
