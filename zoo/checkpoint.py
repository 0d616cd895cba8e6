"""Checkpoints of a run, by Orbax: the only file that imports it.

    WORKDIR/checkpoints/STEP/     params, state (step, opt_state, rng), extra (JSON)

Of parameters with adapters, `params` are the adapters: what they stand on is read where it was read
first, and `run.json` has its fingerprint.

Saves run in the background and appear under their name when they are whole. The last few stay, and
the best by validation loss. Restoring always gives Orbax the shapes to expect.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from zoo import lora, muted
from zoo.config import Config
from zoo.describe import shapes
from zoo.quantized import is_quantized
from zoo.runs import (
    RUN_FILE,
    TOKENIZER,
    check_new,
    check_run,
    claim,
    copy_tokenizer,
    is_run,
    read_run,
    write_run,
)
from zoo.sharding import Rules, laid_out, shardings
from zoo.training.step import TrainState

__all__ = [
    "CHECKPOINTS", "RUN_FILE", "TOKENIZER", "Checkpoints", "SaveError", "check_new", "check_run",
    "claim", "copy_tokenizer", "is_run", "load_run", "read_run", "save_run", "write_run",
]  # fmt: skip

CHECKPOINTS = "checkpoints"

muted.mute_orbax()


class SaveError(OSError):
    """A checkpoint could not be written; those written before it are whole."""


class Checkpoints:
    """The checkpoints of one working directory.

    Attributes:
        folder: where they lie.
    """

    def __init__(self, workdir: str | os.PathLike, keep: int = 2, tidy: bool = True):
        """Opens them.

        Args:
            workdir: the run's.
            keep: how many of the last ones stay.
            tidy: remove what a save that was killed has left. For the run itself only: to others a
                save that goes on looks the same.
        """
        self.folder = Path(workdir).absolute() / CHECKPOINTS
        policies = ocp.checkpoint_managers
        best = policies.BestN(
            get_metric_fn=_loss, reverse=True, n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            best_fn=_loss,
            best_mode="min",
            cleanup_tmp_directories=tidy,
            async_options=ocp.options.AsyncOptions(barrier_sync_fn=_meeting()),
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    @property
    def latest(self) -> int | None:
        """Step of the last checkpoint that is whole."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """Step of the checkpoint of lowest validation loss; the latest where none has one."""
        found = {s: self._manager.metrics(s) for s in self._manager.all_steps()}
        found = {s: _loss(m) for s, m in found.items() if m}
        return min(found, key=found.get) if found else self.latest

    def save(self, state: TrainState, extra: dict, loss: float | None = None) -> None:
        """Writes the state in the background; it may be donated as soon as this returns.

        Args:
            state: the state, whose step names the checkpoint.
            extra: what else must come back on resuming, as JSON: the data iterator's state and
                such.
            loss: validation loss at this step, where it was measured.

        Raises:
            SaveError: this save, or the one before it, could not be written.
        """
        step = int(state.step)
        if step == self.latest:
            return
        self.wait()
        self.require_space(state)
        args = _save_args(lora.split(state.params)[0], _rest(state), extra)
        try:
            self._manager.save(step, args=args, metrics=None if loss is None else {"loss": loss})
        except Exception as e:
            raise self._failed(e) from e

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict]:
        """The state and `extra` of a checkpoint, by default the latest.

        Args:
            like: arrays or shapes of the state to restore, with the types to restore it in and,
                where they say, how it lies on devices, whatever those were that saved it. What does
                not learn is taken from here.
            step: which one.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is of another model.
        """
        step = self.latest if step is None else step
        if step is None:
            raise FileNotFoundError(f"{self.folder} has no checkpoint")
        learnt, frozen = lora.split(like.params)
        self._require_same(learnt, step)
        found = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(_shapes(learnt)),
                state=ocp.args.StandardRestore(_shapes(_rest(like))),
                extra=ocp.args.JsonRestore(),
            ),
        )
        rest = dict(found.state)
        rng = jax.random.wrap_key_data(rest.pop("rng"))
        return TrainState(params=lora.join(found.params, frozen), rng=rng, **rest), found.extra

    def _require_same(self, params: dict, step: int) -> None:
        """Refuses a checkpoint whose parameters are not these by name and shape."""
        there = self._extra(step).get("shapes")
        if there is None:  # earlier versions kept none; Orbax then compares what it can
            return
        leaves = jax.tree_util.tree_leaves_with_path(params)
        here = {_key(path): list(leaf.shape) for path, leaf in leaves}
        if names := [n for n in sorted(there | here) if there.get(n) != here.get(n)]:
            lines = (f"  {n}: {there.get(n)} there, {here.get(n)} here" for n in names[:10])
            raise ValueError(
                f"{self.folder / str(step)} holds another model, which differs in:\n"
                + "\n".join(lines)
            )

    def _extra(self, step: int) -> dict:
        return self._manager.restore(
            step, args=ocp.args.Composite(extra=ocp.args.JsonRestore())
        ).extra

    def restore_params(self, config: Config, step: int, placed: dict | None = None) -> dict:
        """Only the parameters, in the types they were saved in, where `placed` has them lie."""
        kinds = self._extra(step)["types"]
        like = jax.tree_util.tree_map_with_path(
            lambda path, x: jax.ShapeDtypeStruct(x.shape, kinds[_key(path)]), shapes(config)
        )
        if placed is not None:
            like = laid_out(like, placed)
        return self._restore_params(like, step)

    def restore_adapters(self, params: dict, step: int) -> dict:
        """Parameters with the adapters of a checkpoint, on what `params` stand on."""
        learnt, frozen = lora.split(params)
        self._require_same(learnt, step)
        return lora.join(self._restore_params(learnt, step), frozen)

    def _restore_params(self, like: dict, step: int) -> dict:
        return self._manager.restore(
            step, args=ocp.args.Composite(params=ocp.args.StandardRestore(_shapes(like)))
        ).params

    def save_params(self, params: dict) -> None:
        """Writes parameters alone as checkpoint 0, and waits for it.

        Raises:
            SaveError: it could not be written.
        """
        self.require_space(params)
        try:
            self._manager.save(0, args=_save_args(params, None, {}))
        except Exception as e:
            raise self._failed(e) from e
        self.wait()

    def wait(self) -> None:
        """Returns when nothing is being written.

        Raises:
            SaveError: what was being written could not be.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as e:
            raise self._failed(e) from e

    def close(self) -> None:
        """Waits, and ends the threads."""
        self.wait()
        self._manager.close()

    def require_space(self, state: Any) -> None:
        """Checks that the disk can hold one more checkpoint, of what learns in it.

        Raises:
            SaveError: it cannot.
        """
        learnt, _ = lora.split(state)
        need = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(_shapes(learnt)))
        free = shutil.disk_usage(self.folder).free
        if free < need:
            raise SaveError(
                f"{self.folder}: a checkpoint needs {need / 1e6:.1f} MB and {free / 1e6:.1f} MB "
                f"are free: free some space, or choose another --workdir. {self._kept()}"
            )

    def _failed(self, cause: Exception) -> SaveError:
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else repr(cause)
        if len(reason) > 300:  # The system's word is at the end.
            reason = f"{reason[:150]} ... {reason[-150:]}"
        return SaveError(
            f"{self.folder}: a checkpoint could not be written: {reason}. Is the disk full? Free "
            f"some space and run the same command again. {self._kept()}"
        )

    def _kept(self) -> str:
        steps = sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit())
        if not steps:
            return "There is no earlier checkpoint."
        return f"Earlier checkpoints are whole: {', '.join(map(str, steps))}."


def load_run(
    workdir: str | os.PathLike,
    which: Literal["best", "latest"] = "best",
    mesh: jax.sharding.Mesh | None = None,
    rules: str | Rules | None = None,
    merge: Callable[[dict], dict] = lora.merged,
) -> tuple[Config, dict, Path | None]:
    """The model of a run: config, parameters, and the folder of its tokenizer if it has one.

    Adapters are merged into the weights that they stand on, read anew from where the run started:
    at once, or by `zoo.lora.sums`, as `zoo.save_hf` writes them.

    With a mesh, parameters lie on it by the rules, whatever mesh they were saved from.

    Raises:
        ValueError: `workdir` is no run, has no checkpoint yet, or stands on weights that changed.
    """
    from zoo.models import config_from_hf

    workdir = Path(workdir)
    record = read_run(workdir)
    config = config_from_hf(record["model"])
    checkpoints = Checkpoints(workdir, tidy=False)
    step = checkpoints.best if which == "best" else checkpoints.latest
    if step is None:
        raise ValueError(f"{checkpoints.folder} has no checkpoint: let the run reach one first")
    if "base" in record:
        params = merge(checkpoints.restore_adapters(_base(workdir, record, mesh, rules), step))
    else:
        placed = None if mesh is None else shardings(config, mesh, rules)
        params = checkpoints.restore_params(config, step, placed)
    checkpoints.close()
    tokenizer = workdir / TOKENIZER
    return config, params, tokenizer if tokenizer.is_dir() else None


def _base(workdir: Path, record: dict, mesh: Any, rules: Any) -> dict:
    """The parameters that a run with adapters started from."""
    from zoo.training.run import load_params
    from zoo.training.settings import from_config

    settings = from_config(record["settings"])
    params = load_params(settings, mesh, rules)
    if (found := lora.fingerprint(lora.split(params)[1])) != record["base"]:
        raise ValueError(
            f"{workdir} has adapters for other weights than {settings.init_from} holds now "
            f"(fingerprint {record['base']} then, {found} now): put these back"
        )
    return params


def save_run(
    workdir: str | os.PathLike,
    config: Config,
    params: dict,
    tokenizer: str | os.PathLike | None = None,
) -> None:
    """Writes a model as a run of no steps, which `load_run` and `init_from` read.

    Args:
        workdir: a folder that does not exist yet, or is empty.
        config: the model.
        params: of any types, which are kept.
        tokenizer: a folder, whose tokenizer files are copied.

    Raises:
        ValueError: the folder has something in it, or the parameters are quantised.
        SaveError: it could not be written.
    """
    from zoo.models import config_to_hf

    workdir = check_new(workdir)
    if is_quantized(params):
        raise ValueError("a run holds floats, but these params are quantised: load with a dtype")
    checkpoints = Checkpoints(workdir, keep=1)
    checkpoints.save_params(params)
    checkpoints.close()
    if tokenizer is not None:
        copy_tokenizer(tokenizer, workdir / TOKENIZER)
    write_run(workdir, {"model": config_to_hf(config), "settings": None})


def _save_args(params: dict, rest: dict | None, extra: dict) -> ocp.args.Composite:
    leaves = {_key(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
    about = {
        "types": {name: str(x.dtype) for name, x in leaves.items()},
        "shapes": {name: list(x.shape) for name, x in leaves.items()},
    }
    items = {
        "params": ocp.args.StandardSave(params),
        "extra": ocp.args.JsonSave(extra | about),
    }
    if rest is not None:
        items["state"] = ocp.args.StandardSave(rest)
    return ocp.args.Composite(**items)


def _rest(state: TrainState) -> dict:
    """The state without its parameters. Orbax 0.11 restores no typed keys: this one is numbers."""
    if isinstance(state.rng, jax.ShapeDtypeStruct):
        numbers = jax.eval_shape(jax.random.key_data, state.rng)
        numbers = laid_out(numbers, state.rng.sharding) if state.rng.sharding else numbers
    else:
        numbers = jax.random.key_data(state.rng)
    return {"step": state.step, "opt_state": state.opt_state, "rng": numbers}


def _shapes(tree: Any) -> Any:
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def shape(x: Any) -> jax.ShapeDtypeStruct:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.eval_shape(jax.random.key_data, x)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or here)

    return jax.tree.map(shape, tree)


def _key(path: tuple) -> str:
    return "/".join(str(getattr(k, "key", k)) for k in path)


def _loss(metrics: dict) -> float:
    return metrics["loss"]


def _meeting() -> ocp.multihost.BarrierSyncFn:
    """How processes wait for each other in the background: not if this one has failed.

    Orbax's thread waits for the others with the exception in its hands, which tells nobody before
    they all come; and they wait for what this process did not write.
    """
    wait = ocp.multihost.get_barrier_sync_fn()

    def meet(*, key: str, timeout_ms: int) -> None:
        failed = sys.exception()
        if failed is not None and threading.current_thread() is not threading.main_thread():
            raise failed
        wait(key=key, timeout_ms=timeout_ms)

    return meet
