"""A run before its first step: what the settings name, found, checked and put together."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from zoo import checkpoint, hosts, lora
from zoo.config import Config
from zoo.data import DataConfig, Prepared, eval_batches, prepare
from zoo.decoder import Decoder
from zoo.models import config, config_from_hf, config_to_hf, presets
from zoo.rounding import METHODS
from zoo.sharding import Rules, laid_out
from zoo.training import unread
from zoo.training.evaluate import Report, evaluate, make_eval_step
from zoo.training.layout import Layout, find_layout
from zoo.training.optimizer import make_optimizer
from zoo.training.settings import RESUMABLE, Settings
from zoo.training.step import Batch, TrainState, create_state, state_shardings

POLICIES: dict[str, Callable | None] = {
    "nothing": None,
    "cheap": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "everything": jax.checkpoint_policies.nothing_saveable,
}


@dataclass
class Run:
    """All that a loop needs.

    `state` is of the last checkpoint, with what was kept beside it in `extra`; or new, and None.
    It lies where `placed` says, on the mesh of `layout`. While `claimed` is open, no other process
    trains the same run.
    """

    settings: Settings
    layout: Layout
    workdir: Path
    config: Config
    model: Decoder
    optimizer: optax.GradientTransformation
    data: Prepared
    checkpoints: checkpoint.Checkpoints
    placed: TrainState
    state: TrainState
    extra: dict | None
    claimed: TextIO | None

    @functools.cached_property
    def eval_step(self) -> Callable[[dict, Batch], dict]:
        """The compiled evaluation of a batch of `eval_rows` windows."""
        return make_eval_step(self.model)

    @property
    def eval_rows(self) -> int:
        """Windows of an evaluation batch: those of a microbatch, which are known to fit."""
        return self.settings.data.batch // self.settings.accumulate

    @property
    def step(self) -> int:
        return int(self.state.step)

    def evaluate(self, split: str, batches: int | None = None) -> Report:
        """Loss of the parameters on a split, or on so many of its first batches."""
        found = eval_batches(self.data, split, self.eval_rows, limit=batches, **hosts.share())
        return evaluate(
            self.eval_step, self.state.params, map(self.layout.place, found), self.config,
            self.bytes_per_target(split),
        )  # fmt: skip

    def bytes_per_target(self, split: str) -> float:
        """Bytes of text that a target stands for on average."""
        stats = self.data.splits[split]
        return stats.bytes / stats.targets


def prepare_run(
    settings: Settings, workdir: str | os.PathLike, cache_dir: str | os.PathLike | None = None
) -> Run:
    """Finds model, data and weights, or takes up the run that is in `workdir`.

    Args:
        settings: the run.
        workdir: where it keeps everything; it is made.
        cache_dir: where prepared data is kept; `zoo.data.default_cache_dir()` if None.

    Raises:
        ValueError: something does not exist or does not fit, or `workdir` holds another run.
        SaveError: the disk cannot hold a checkpoint.
    """
    workdir = Path(workdir).absolute()
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"{workdir} is a file: name a folder by --workdir")
    layout, model_config = find_layout(settings), find_config(settings)
    _check_window(model_config, settings)
    rows = settings.data.batch // settings.accumulate
    staged = layout.check(model_config, rows, settings.data.window)
    unread.check(settings, model_config, staged)
    record = _record(settings, model_config)
    resuming = checkpoint.is_run(workdir)
    if resuming:
        checkpoint.check_run(workdir, record, free=(*_FREE, "data", "base"))
    elif any((workdir / checkpoint.CHECKPOINTS).glob("[0-9]*")):
        raise ValueError(
            f"{workdir} has checkpoints and no {checkpoint.RUN_FILE}, so nobody can tell of what: "
            "choose another --workdir"
        )
    data = prepare(_with_tokenizer(settings), cache_dir)
    _check_data(data, model_config, settings)
    record["data"] = {
        "corpus_sha256": data.corpus_sha256,
        "tokenizer_sha256": data.tokenizer_sha256,
        "sha256": data.sha256,
    }
    adapted = None
    if settings.lora is not None:
        adapted = load_params(settings, layout.mesh, layout.rules)
        record["base"] = lora.fingerprint(lora.split(adapted)[1])
    if resuming:
        checkpoint.check_run(workdir, record, free=_FREE)
    dtype, policy = compute_dtype(settings.dtype), POLICIES[settings.remat]
    model = layout.model(model_config, dtype=dtype, remat=policy)
    optimizer = make_optimizer(settings.optimizer, settings.steps)
    workdir.mkdir(parents=True, exist_ok=True)
    claimed = checkpoint.claim(workdir) if hosts.is_first() else None
    checkpoints = checkpoint.Checkpoints(workdir, settings.checkpoint.keep)
    placed = state_shardings(model, optimizer, layout.mesh, layout.rules, adapted)
    state, extra = _state(settings, model, optimizer, checkpoints, layout, placed, adapted)
    if not resuming and hosts.is_first():
        checkpoint.copy_tokenizer(
            data.tokenizer.folder, workdir / checkpoint.TOKENIZER, _token_ids(data)
        )
        checkpoint.write_run(workdir, record)
    hosts.meet("run is prepared")
    return Run(
        settings, layout, workdir, model_config, model, optimizer, data, checkpoints, placed, state,
        extra, claimed,
    )  # fmt: skip


def find_config(settings: Settings) -> Config:
    """The model that `settings.model` or `settings.init_from` names.

    Raises:
        ValueError: neither a preset nor a folder, or the two differ.
    """
    start = None if settings.init_from is None else _config_of(settings.init_from, weights=True)
    model = settings.model
    if model is None:
        return start
    if isinstance(model, str):
        found = config(model) if model in presets() else _config_of(model)
    else:
        found = config_from_hf(model)
    if start is not None and found != start:
        names = [
            f.name
            for f in dataclasses.fields(Config)
            if getattr(found, f.name) != getattr(start, f.name)
        ]
        raise ValueError(
            f"config.model differs from the model of init_from={settings.init_from!r} in "
            f"{', '.join(names)}: set model=None to take that one"
        )
    return found


def compute_dtype(name: str) -> jnp.dtype:
    """The type of activations and products; "auto" is bfloat16 except on CPU."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


_FREE = (*(f"settings.{name}" for name in RESUMABLE), "versions")


def _record(settings: Settings, model_config: Config) -> dict:
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "zoo-jax")
    return {
        "model": config_to_hf(model_config),
        "settings": json.loads(json.dumps(dataclasses.asdict(settings))),
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in packages},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _config_of(path: str, weights: bool = False) -> Config:
    """The model of a run or of a folder; with `weights`, of what the folder's tensors are.

    A config may announce layers of multi-token prediction that the tensors lack.
    """
    if checkpoint.is_run(path):
        return config_from_hf(checkpoint.read_run(path)["model"])
    if weights and not Path(path).exists():
        raise ValueError(
            f"init_from={path!r} does not exist: name a Hugging Face folder or a finished run"
        )
    if not Path(path).exists():
        raise ValueError(
            f"{path!r} is neither a folder nor a preset: presets are {', '.join(presets())}"
        )
    if not weights:
        return config_from_hf(path)
    from zoo.hf.load import read

    return read(path)[1]


def _with_tokenizer(settings: Settings) -> DataConfig:
    """Weights that are taken over keep their tokenizer, unless the data names one."""
    if settings.init_from is None or settings.data.tokenizer is not None:
        return settings.data
    folder = Path(settings.init_from)
    folder = folder / checkpoint.TOKENIZER if checkpoint.is_run(folder) else folder
    return dataclasses.replace(settings.data, tokenizer=str(folder))


def _token_ids(data: Prepared) -> dict[str, int]:
    return {f"{name}_token_id": getattr(data.tokenizer, name) for name in ("bos", "eos", "pad")}


def _check_window(model_config: Config, settings: Settings) -> None:
    if settings.data.window > model_config.max_length:
        raise ValueError(
            f"data.window={settings.data.window} is longer than the model's "
            f"max_position_embeddings={model_config.max_length}: shorten the one or lengthen the "
            "other"
        )


def _check_data(data: Prepared, model_config: Config, settings: Settings) -> None:
    if data.vocab_size > model_config.vocab_size:
        raise ValueError(
            f"the tokenizer has {data.vocab_size} tokens and the model vocab_size="
            f"{model_config.vocab_size}: make the model's larger, or data.vocab_size smaller"
        )
    for text in settings.samples.prompts:
        length = 1 + len(data.tokenizer.encode(text)) + settings.samples.tokens
        if length > model_config.max_length:
            raise ValueError(
                f"samples.prompts={text!r:.60} and samples.tokens={settings.samples.tokens} new "
                f"ones are {length} tokens, and the model's max_position_embeddings="
                f"{model_config.max_length}: shorten one of them"
            )


def _state(
    settings: Settings,
    model: Decoder,
    optimizer: optax.GradientTransformation,
    checkpoints: checkpoint.Checkpoints,
    layout: Layout,
    placed: TrainState,
    params: dict | None,
) -> tuple[TrainState, dict | None]:
    """The last checkpoint's state, or a new one; `params` are given where they have adapters."""
    if checkpoints.latest is not None and params is None:
        like = jax.eval_shape(lambda: create_state(model, optimizer, settings.seed))
        return checkpoints.restore(laid_out(like, placed))
    if settings.init_from is not None and params is None:
        params = load_params(settings, layout.mesh, layout.rules)
    state = create_state(model, optimizer, settings.seed, params, placed)
    if checkpoints.latest is not None:
        return checkpoints.restore(state)
    checkpoints.require_space(state)
    return state, None


def load_params(settings: Settings, mesh: Mesh | None, rules: Rules | str | None) -> dict:
    """Weights of a Hugging Face folder or of a run's best checkpoint, in float32.

    With `settings.lora` they are held as its `base` says, and have new adapters.

    Raises:
        ValueError: there is no such model, it cannot be held so, or it lacks a target.
    """
    start, spec = settings.init_from, settings.lora
    base = "float32" if spec is None else spec.base
    if checkpoint.is_run(start):
        if base not in ("stored", "float32"):
            raise ValueError(
                f"lora.base={base!r}, but init_from={start!r} is a run, which holds float32: name "
                "the folder hf/ in it, or set lora.base='stored'"
            )
        params = checkpoint.load_run(start, mesh=mesh, rules=rules)[1]
    else:
        from zoo.hf.load import load

        rounded = dict(quantize=base) if base in METHODS else dict(dtype=base)
        params = load(start, mesh, rules, **({} if base == "stored" else rounded)).params
    if spec is None:
        return params
    key = jax.random.key(settings.seed)
    return lora.adapt(params, spec.rank, spec.alpha, key, spec.targets)
