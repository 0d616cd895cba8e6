"""Checkpoints of a run, by Orbax: the only file that imports it.

    WORKDIR/run.json              what the run is: model, settings, tokenizer and corpus by sha256
    WORKDIR/tokenizer/            the tokenizer, as Hugging Face keeps it
    WORKDIR/checkpoints/STEP/     params, state (step, opt_state, rng), extra (JSON)

Saves run in the background and appear under their name when they are whole. The last few stay, and
the best by validation loss. Restoring always gives Orbax the shapes to expect.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from zoo.config import Config
from zoo.describe import shapes
from zoo.quantized import is_quantized
from zoo.sharding import Rules, laid_out, shardings
from zoo.training.step import TrainState

RUN_FILE = "run.json"
CHECKPOINTS = "checkpoints"
TOKENIZER = "tokenizer"


class SaveError(OSError):
    """A checkpoint could not be written; those written before it are whole."""


class Checkpoints:
    """The checkpoints of one working directory.

    Attributes:
        folder: where they lie.
    """

    def __init__(self, workdir: str | os.PathLike, keep: int = 2):
        self.folder = Path(workdir).absolute() / CHECKPOINTS
        policies = ocp.checkpoint_managers
        best = policies.BestN(
            get_metric_fn=_loss, reverse=True, n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            best_fn=_loss,
            best_mode="min",
            cleanup_tmp_directories=True,
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
        args = _save_args(state.params, _rest(state), extra)
        try:
            self._manager.save(step, args=args, metrics=None if loss is None else {"loss": loss})
        except Exception as e:
            raise self._failed(e) from e

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict]:
        """The state and `extra` of a checkpoint, by default the latest.

        Args:
            like: arrays or shapes of the state to restore, with the types to restore it in and,
                where they say, how it lies on devices, whatever those were that saved it.
            step: which one.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is of another model.
        """
        step = self.latest if step is None else step
        if step is None:
            raise FileNotFoundError(f"{self.folder} has no checkpoint")
        self._require_same(like.params, step)
        found = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(_shapes(like.params)),
                state=ocp.args.StandardRestore(_shapes(_rest(like))),
                extra=ocp.args.JsonRestore(),
            ),
        )
        rest = dict(found.state)
        rng = jax.random.wrap_key_data(rest.pop("rng"))
        return TrainState(params=found.params, rng=rng, **rest), found.extra

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
            while jax.process_count() > 1 and self._manager.is_saving_in_progress():
                if _lost:
                    raise _lost[0]
                time.sleep(_GLANCE)
            self._manager.wait_until_finished()
        except Exception as e:
            raise self._failed(e) from e

    def close(self) -> None:
        """Waits, and ends the threads."""
        self.wait()
        self._manager.close()

    def require_space(self, state: Any) -> None:
        """Checks that the disk can hold one more checkpoint.

        Raises:
            SaveError: it cannot.
        """
        need = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(_shapes(state)))
        free = shutil.disk_usage(self.folder).free
        if free < need:
            raise SaveError(
                f"{self.folder}: a checkpoint needs {need / 1e6:.1f} MB and {free / 1e6:.1f} MB "
                f"are free: free some space, or choose another --workdir. {self._kept()}"
            )

    def _failed(self, cause: Exception) -> SaveError:
        reason = str(cause).strip().splitlines()[0][:300] if str(cause).strip() else repr(cause)
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
) -> tuple[Config, dict, Path | None]:
    """The model of a run: config, parameters, and the folder of its tokenizer if it has one.

    With a mesh, parameters lie on it by the rules, whatever mesh they were saved from.

    Raises:
        ValueError: `workdir` is no run, or has no checkpoint yet.
    """
    from zoo.models import config_from_hf

    workdir = Path(workdir)
    config = config_from_hf(read_run(workdir)["model"])
    checkpoints = Checkpoints(workdir)
    step = checkpoints.best if which == "best" else checkpoints.latest
    if step is None:
        raise ValueError(f"{checkpoints.folder} has no checkpoint: let the run reach one first")
    placed = None if mesh is None else shardings(config, mesh, rules)
    params = checkpoints.restore_params(config, step, placed)
    checkpoints.close()
    tokenizer = workdir / TOKENIZER
    return config, params, tokenizer if tokenizer.is_dir() else None


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

    workdir = Path(workdir)
    if workdir.is_dir() and any(workdir.iterdir()):
        raise ValueError(f"{workdir} is not empty: name a new folder")
    if is_quantized(params):
        raise ValueError("a run holds floats, but these params are quantised: load with a dtype")
    checkpoints = Checkpoints(workdir, keep=1)
    checkpoints.save_params(params)
    checkpoints.close()
    if tokenizer is not None:
        copy_tokenizer(tokenizer, workdir / TOKENIZER)
    write_run(workdir, {"model": config_to_hf(config), "settings": None})


def copy_tokenizer(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Copies what belongs to a tokenizer out of a folder, which may hold a whole model."""
    from zoo.hf.source import copy_texts

    Path(target).mkdir(parents=True, exist_ok=True)
    copy_texts(Path(source), Path(target))


def is_run(path: str | os.PathLike) -> bool:
    """Whether a folder is the working directory of a run."""
    return (Path(path) / RUN_FILE).is_file()


def read_run(workdir: str | os.PathLike) -> dict:
    """What `run.json` says.

    Raises:
        ValueError: there is none, or it is not JSON.
    """
    path = Path(workdir) / RUN_FILE
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{workdir} is no run of train.py: it has no {RUN_FILE}") from None
    except json.JSONDecodeError as e:
        raise ValueError(
            f"{path} is not JSON ({e}): restore it, or start in a new workdir"
        ) from None


def write_run(workdir: str | os.PathLike, record: dict) -> None:
    """Writes `run.json`, whole or not at all."""
    path = Path(workdir) / RUN_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    temporary.replace(path)


def check_run(workdir: str | os.PathLike, record: dict, free: Sequence[str] = ()) -> None:
    """Refuses to continue a run as another one.

    Args:
        workdir: of the run that is there.
        record: what `run.json` would say of the run that wants to continue it.
        free: names, dotted, of fields that may differ; they cover what is below them.

    Raises:
        ValueError: anything else differs; every difference is named with both values.
    """
    before, now = _flat(read_run(workdir)), _flat(json.loads(json.dumps(record)))
    names = [n for n in sorted(before.keys() | now.keys()) if before.get(n) != now.get(n)]
    names = [n for n in names if not any(n == f or n.startswith(f + ".") for f in free)]
    if names:
        lines = (f"  {n}: {before.get(n)!r} there, {now.get(n)!r} now" for n in names[:20])
        raise ValueError(
            f"{workdir} holds a run of another configuration:\n" + "\n".join(lines) + "\nChoose "
            "another --workdir, or put these values back to continue that run. To start a new run "
            f"from its weights, add --config.init_from={workdir}"
        )


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


def _flat(tree: Any, where: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {where: tree}
    return {
        name: leaf
        for key, value in tree.items()
        for name, leaf in _flat(value, f"{where}.{key}" if where else key).items()
    }


_GLANCE = 0.05
"""Seconds between two looks at a save that all processes work on."""

_lost: list[BaseException] = []
"""What this process could not write. Orbax tells so only once all processes have written; it logs
it at once."""


def _notice(record: logging.LogRecord) -> bool:
    """Remembers what a thread of Orbax failed at."""
    if record.threadName == "async_save" and record.exc_info and record.exc_info[1]:
        _lost.append(record.exc_info[1])
    return True


def _mute(record: logging.LogRecord) -> bool:
    """Orbax tells a screenful per save, and warns of those without metrics, which are meant so."""
    if "orbax" not in record.pathname:
        return True
    expected = "did not provide metrics" in record.getMessage()
    return record.levelno >= logging.WARNING and not expected


logging.getLogger("absl").addFilter(_notice)
logging.getLogger("absl").addFilter(_mute)
