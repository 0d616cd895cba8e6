"""What is to be planned: one program (a training step, a prefill, a decoding step) and its sizes.

The programs are those that training and serving run; only their arguments are shapes here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from zoo import cache as caches
from zoo import sharding
from zoo.config import Config
from zoo.decoder import Decoder
from zoo.describe import shapes
from zoo.training.optimizer import make_optimizer
from zoo.training.run import POLICIES
from zoo.training.settings import Balance, Optimizer
from zoo.training.step import TrainState, make_step

Mode = Literal["train", "prefill", "decode"]
Remat = Literal["nothing", "cheap", "everything"]


@dataclass(frozen=True)
class Workload:
    """Sizes of a program.

    Attributes:
        mode: "train" is a step of the optimizer, "prefill" fills an empty cache with prompts and
            returns the last logits, "decode" makes one token per row against a full cache.
        batch: rows on all chips together.
        length: tokens of a row: a window, a prompt, or slots of the cache.
        accumulate: microbatches of a training step.
        remat: what the backward pass recomputes, as in `zoo.training.settings`.
        weights: type of the parameters; None is float32 for training, bfloat16 otherwise.
        optimizer: of a training step.
        mtp_loss: weight of the loss of multi-token prediction.
    """

    mode: Mode
    batch: int
    length: int
    accumulate: int = 1
    remat: Remat = "everything"
    weights: str | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    mtp_loss: float = 0.3

    def __post_init__(self):
        for name, allowed in (("mode", get_args(Mode)), ("remat", get_args(Remat))):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}"
                )
        for name in ("batch", "length", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.batch % self.accumulate:
            raise ValueError(f"accumulate={self.accumulate} must divide batch={self.batch}")

    @property
    def param_dtype(self) -> jnp.dtype:
        default = "float32" if self.mode == "train" else "bfloat16"
        return jnp.dtype(self.weights or default)

    @property
    def tokens(self) -> int:
        """Tokens that a run of the program is for: trained on, read, or made."""
        return self.batch * (1 if self.mode == "decode" else self.length)


class Arguments(NamedTuple):
    """Shapes with shardings of all that lives in memory between two runs, and of what comes in."""

    params: Any
    optimizer: Any
    cache: Any
    batch: Any


class Program(NamedTuple):
    """A jitted function and the shapes to lower it with."""

    run: Callable
    arguments: tuple
    parts: Arguments


def program(
    cfg: Config, work: Workload, mesh: Mesh | AbstractMesh, rules: sharding.Rules
) -> Program:
    """The program of `work` with its arguments laid out on `mesh`.

    Raises:
        ValueError: rules or sizes that the mesh does not divide.
    """
    params = _shaped(shapes(cfg, work.param_dtype), sharding.shardings(cfg, mesh, rules))
    rows = sharding.batch_sharding(mesh, rules, work.batch // work.accumulate)
    if work.mode == "train":
        return _train(cfg, work, params, rows)
    model = Decoder(cfg, dtype=jnp.bfloat16)
    empty = jax.eval_shape(functools.partial(caches.init, cfg, work.batch, work.length))
    cache = _shaped(empty, sharding.cache_shardings(empty, mesh, rules))
    make = _prefill if work.mode == "prefill" else _decode
    return make(model, work, params, cache, rows)


def _train(cfg: Config, work: Workload, params: dict, rows: NamedSharding) -> Program:
    model = Decoder(cfg, dtype=jnp.bfloat16, remat=POLICIES[work.remat])
    optimizer = make_optimizer(work.optimizer, steps=10_000)
    step = make_step(model, optimizer, Balance(), work.accumulate, work.mtp_loss)
    alone = NamedSharding(rows.mesh, PartitionSpec())
    inner = params["params"]
    opt_state = jax.eval_shape(optimizer.init, inner)
    places = jax.tree.map(lambda leaf: leaf.sharding, inner)
    opt_state = _shaped(opt_state, sharding.shardings_like(opt_state, inner, places))
    key = jax.eval_shape(jax.random.key, 0)
    state = TrainState(
        jax.ShapeDtypeStruct((), jnp.int32, sharding=alone),
        params,
        opt_state,
        jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=alone),
    )
    window = jax.ShapeDtypeStruct((work.batch, work.length), jnp.int32, sharding=rows)
    batch = dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), window)
    out = jax.tree.map(lambda leaf: leaf.sharding, state), None
    run = jax.jit(step.__wrapped__, donate_argnums=0, out_shardings=out)
    return Program(run, (state, batch), Arguments(params, opt_state, (), batch))


def _prefill(model, work: Workload, params: dict, cache: Any, rows: NamedSharding) -> Program:
    def run(params, tokens):
        empty = caches.init(model.cfg, work.batch, work.length, model.dtype)
        out = model.apply(params, tokens, cache=empty, method="hidden")
        return model.apply(params, out.hidden[:, -1:], method="logits"), out.cache

    tokens = jax.ShapeDtypeStruct((work.batch, work.length), jnp.int32, sharding=rows)
    out = rows, jax.tree.map(lambda leaf: leaf.sharding, cache)
    return Program(
        jax.jit(run, out_shardings=out), (params, tokens), Arguments(params, (), cache, tokens)
    )


def _decode(model, work: Workload, params: dict, cache: Any, rows: NamedSharding) -> Program:
    def run(params, cache, tokens):
        out = model.apply(params, tokens, cache=cache, method="hidden")
        logits = model.apply(params, out.hidden, method="logits")
        return jnp.argmax(logits, axis=-1).astype(jnp.int32), out.cache

    tokens = jax.ShapeDtypeStruct((work.batch, 1), jnp.int32, sharding=rows)
    out = rows, jax.tree.map(lambda leaf: leaf.sharding, cache)
    jitted = jax.jit(run, donate_argnums=1, out_shardings=out)
    return Program(jitted, (params, cache, tokens), Arguments(params, (), cache, tokens))


def _shaped(tree: Any, placed: Any) -> Any:
    return jax.tree.map(
        lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), tree, placed
    )


def device_bytes(tree: Any) -> int:
    """Bytes of a tree of shapes that one device holds."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
