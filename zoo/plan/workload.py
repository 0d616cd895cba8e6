"""What is to be planned: one program (a training step, a prefill, a decoding step) and its sizes.

The programs are those that training and serving run; only their arguments are shapes here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from zoo import cache as caches
from zoo import lora, sharding
from zoo.config import Config
from zoo.decoder import Decoder
from zoo.describe import shapes
from zoo.hf.load import codes_sharding
from zoo.quantized import Quantized
from zoo.rounding import METHODS, method, place
from zoo.rounding import shapes as rounded_shapes
from zoo.training.optimizer import make_optimizer
from zoo.training.run import POLICIES
from zoo.training.settings import Balance, Lora, Optimizer
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
        weights: type of the parameters; None is float32 for training, bfloat16 otherwise, and with
            `lora` its `base`, taken for bfloat16 where that is "stored". What a `base` of "int8",
            "int4" or "fp8" does not round is bfloat16.
        optimizer: of a training step.
        mtp_loss: weight of the loss of multi-token prediction.
        microbatches: of a training step on a mesh with stages, as in `zoo.training.settings`.
        rounds: of each microbatch through the stages, likewise.
        lora: what learns in a training step, if not everything.
    """

    mode: Mode
    batch: int
    length: int
    accumulate: int = 1
    remat: Remat = "everything"
    weights: str | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    mtp_loss: float = 0.3
    microbatches: int | None = None
    rounds: int = 1
    lora: Lora | None = None

    def __post_init__(self):
        for name, allowed in (("mode", get_args(Mode)), ("remat", get_args(Remat))):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}"
                )
        for name in ("batch", "length", "accumulate", "microbatches", "rounds"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.accumulate > 1 and self.mode != "train":
            raise ValueError(
                f"accumulate={self.accumulate} is of mode='train': for {self.mode}, make the batch "
                "smaller"
            )
        if self.batch % self.accumulate:
            raise ValueError(f"accumulate={self.accumulate} must divide batch={self.batch}")
        if self.lora is not None and self.mode != "train":
            raise ValueError(f"lora is of mode='train': for {self.mode}, adapters are merged")

    @property
    def rounds_to(self) -> str | None:
        """The method of `zoo.rounding` that linear maps beside adapters are held by, if any."""
        return self.lora.base if self.lora is not None and self.lora.base in METHODS else None

    @property
    def weight_bytes(self) -> float:
        """Of an element of a linear map as it is held, scales aside."""
        if self.rounds_to is None:
            return self.param_dtype.itemsize
        return METHODS[self.rounds_to].encoding.width(2) / 2  # all have codes of a byte

    @property
    def param_dtype(self) -> jnp.dtype:
        default = "float32" if self.mode == "train" else "bfloat16"
        if self.lora is not None:
            floats = self.rounds_to is None and self.lora.base != "stored"
            default = self.lora.base if floats else "bfloat16"
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
    params, placed = _shapes(cfg, work.param_dtype), sharding.shardings(cfg, mesh, rules)
    if work.lora is not None:
        params = _adapted(params, placed, work.lora)
        placed = lora.shardings(placed, params)
    params = _shaped(params, placed)
    rows = sharding.batch_sharding(mesh, rules, work.batch // work.accumulate)
    if work.mode == "train":
        return _train(cfg, work, params, rows)
    model = Decoder(cfg, dtype=jnp.bfloat16)
    empty = jax.eval_shape(functools.partial(caches.init, cfg, work.batch, work.length))
    cache = _shaped(empty, sharding.cache_shardings(empty, mesh, rules))
    make = _prefill if work.mode == "prefill" else _decode
    rows = NamedSharding(mesh, PartitionSpec(rows.spec[0]))  # with a cache rows are not shared
    return make(model, work, params, cache, rows)


def _train(cfg: Config, work: Workload, params: dict, rows: NamedSharding) -> Program:
    schedule = dict(microbatches=work.microbatches, rounds=work.rounds)
    model = Decoder(cfg, dtype=jnp.bfloat16, remat=POLICIES[work.remat], **schedule)
    optimizer = make_optimizer(work.optimizer, steps=10_000)
    step = make_step(model, optimizer, Balance(), work.accumulate, work.mtp_loss)
    alone = NamedSharding(rows.mesh, PartitionSpec())
    learnt, _ = lora.split(params["params"])
    opt_state = jax.eval_shape(optimizer.init, learnt)
    places = jax.tree.map(lambda leaf: leaf.sharding, learnt)
    opt_state = _shaped(opt_state, sharding.shardings_like(opt_state, learnt, places))
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


_shapes = functools.lru_cache(maxsize=8)(shapes)  # of one model on many meshes


def _adapted(params: dict, placed: dict, spec: Lora) -> dict:
    """Shapes of parameters with adapters; those that are rounded say where they lie."""

    def adapt(params: dict) -> dict:
        return lora.adapt(params, spec.rank, spec.alpha, jax.random.key(0), spec.targets)

    def stands_on(made: Any, base: Any) -> Any:
        return replace(made, base=base) if isinstance(made, lora.Adapted) else base

    held = _rounded(params, placed, spec.base) if spec.base in METHODS else params
    is_leaf = lambda x: isinstance(x, lora.Adapted | Quantized)  # noqa: E731
    return jax.tree.map(stands_on, jax.eval_shape(adapt, held), held, is_leaf=is_leaf)


def _rounded(params: dict, placed: dict, name: str) -> dict:
    """Shapes of what `zoo.load` makes with `quantize=name`."""

    def one(keys: tuple, leaf: jax.ShapeDtypeStruct, where: NamedSharding) -> Any:
        found = place("/".join(key.key for key in keys[1:]), leaf.shape)
        if found is None:
            return leaf
        held = rounded_shapes(found, method(name))
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=codes_sharding(where, found, x.shape[-2])
            ),
            held,
        )

    return jax.tree_util.tree_map_with_path(one, params, placed)


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
