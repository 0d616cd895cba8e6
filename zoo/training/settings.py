"""What a run is: frozen dataclasses that a config file's ConfigDict is turned into, strictly.

A config file starts from `defaults()`, so that every field can be overridden on the command line,
and adds the model. `from_config` refuses fields that do not exist, and values of another type, by
name.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from zoo.data.config import DataConfig


@dataclass(frozen=True)
class Optimizer:
    """AdamW. `warmup` and `decay` are counted in steps, `final` is a fraction of `learning_rate`.

    `clip` bounds the global norm of the gradient, None leaves it. `decay` belongs to "wsd".
    """

    learning_rate: float = 1e-3
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup: int = 100
    decay: int = 0
    final: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_embeddings: bool = False
    clip: float | None = 1.0

    def __post_init__(self):
        _positive("optimizer", self, "learning_rate", "eps", "clip")
        _not_negative("optimizer", self, "warmup", "decay", "final", "weight_decay")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} must be in [0, 1)")
        if self.schedule == "wsd" and not self.decay:
            raise ValueError(
                "optimizer.decay=0 with schedule='wsd': say over how many steps the rate falls"
            )


@dataclass(frozen=True)
class Balance:
    """How routers are kept busy evenly.

    `bias_rate` moves selection biases after each step (DeepSeek-V3); `aux_loss` is the coefficient
    of the load-balance loss, for routers that have no such bias.
    """

    bias_rate: float = 1e-3
    aux_loss: float = 0.0

    def __post_init__(self):
        _not_negative("balance", self, "bias_rate", "aux_loss")


@dataclass(frozen=True)
class Evaluation:
    """Validation every `every` steps over `batches` batches; at the end over all of the split."""

    every: int = 200
    batches: int | None = 16
    split: str = "validation"

    def __post_init__(self):
        _positive("evaluation", self, "every", "batches")


@dataclass(frozen=True)
class Checkpointing:
    """A checkpoint every `every` steps; the last `keep` stay, and the best by validation loss."""

    every: int = 200
    keep: int = 2

    def __post_init__(self):
        _positive("checkpoint", self, "every", "keep")


@dataclass(frozen=True)
class Samples:
    """What the model continues at the end by `tokens` tokens, and `often` at every evaluation."""

    prompts: tuple[str, ...] = ()
    often: bool = False
    tokens: int = 64
    temperature: float = 0.8
    top_p: float = 0.95

    def __post_init__(self):
        _positive("samples", self, "tokens", "top_p")
        if self.top_p > 1:
            raise ValueError(f"samples.top_p={self.top_p} must be at most 1")
        _not_negative("samples", self, "temperature")


@dataclass(frozen=True)
class Lora:
    """Adapters of `rank` learn, weighed by `alpha` / `rank`, and the weights they stand on stay.

    `targets` are linear maps as `zoo.lora.adapt` takes them, None being those of attention and MLP.
    `base` says how the weights of `init_from` are held: as they are stored, in a type, or rounded
    as by `zoo.load(..., quantize=...)`.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] | None = None
    base: Literal["stored", "float32", "bfloat16", "int8", "int4", "fp8"] = "stored"

    def __post_init__(self):
        _positive("lora", self, "rank", "alpha")


@dataclass(frozen=True)
class Settings:
    """A run.

    `model` is a Hugging Face config as a dict, a preset's name, a folder with a config.json, or
    None for the model of `init_from`, which is a Hugging Face folder or a finished run to take
    weights from; with `lora` these stay, and adapters learn. `data.batch` windows make a step, in
    `accumulate` microbatches. `seed` is of the parameters and of sampling. `dtype` "auto" is
    bfloat16 on accelerators and float32 on CPU; what learns is float32 either way. `mesh` is of
    `zoo.make_mesh`, over all devices, or None for the first of them alone, and `rules` a table of
    `zoo.sharding.RULES` by name, one as a dict, or None for the default. On a mesh with stages
    `microbatches` cut a batch (a microbatch of `accumulate` in its turn), None being up to four per
    stage, and go through them in `rounds` (`zoo.pipeline`). `remat` says what the backward pass
    recomputes: nothing, all but matrix products ("cheap"), or everything. `mtp_loss` weighs the
    loss of a model's layers of multi-token prediction.
    """

    model: dict | str | None
    data: DataConfig
    steps: int = 1000
    accumulate: int = 1
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    remat: Literal["nothing", "cheap", "everything"] = "nothing"
    init_from: str | None = None
    lora: Lora | None = None
    log_every: int = 1
    mesh: str | None = "fsdp=-1"
    rules: dict | str | None = None
    microbatches: int | None = None
    rounds: int = 1
    mtp_loss: float = 0.3
    optimizer: Optimizer = field(default_factory=Optimizer)
    balance: Balance = field(default_factory=Balance)
    evaluation: Evaluation = field(default_factory=Evaluation)
    checkpoint: Checkpointing = field(default_factory=Checkpointing)
    samples: Samples = field(default_factory=Samples)

    def __post_init__(self):
        _positive("", self, "steps", "accumulate", "log_every", "microbatches", "rounds")
        _not_negative("", self, "mtp_loss")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} must be from 0 to {2**32 - 1}")
        if self.evaluation.split not in self.data.splits:
            raise ValueError(
                f"evaluation.split={self.evaluation.split!r} is not in the data, which has "
                f"{', '.join(self.data.splits)}: name one of them"
            )
        if self.data.batch % self.accumulate:
            raise ValueError(
                f"accumulate={self.accumulate} must divide data.batch={self.data.batch}"
            )
        for name in ("warmup", "decay"):
            if getattr(self.optimizer, name) > self.steps:
                raise ValueError(
                    f"optimizer.{name}={getattr(self.optimizer, name)} must not exceed "
                    f"steps={self.steps}"
                )
        if self.model is None and self.init_from is None:
            raise ValueError(
                "model=None: give a Hugging Face config as a dict, a preset's name or a folder, or "
                "set init_from to the weights to start from"
            )
        if self.lora is not None and self.init_from is None:
            raise ValueError(
                "lora without init_from: set it to the folder or the run whose weights stay, or "
                "lora=None to train all of a new model"
            )


RESUMABLE = (
    "log_every", "evaluation", "checkpoint", "samples", "mesh", "rules", "microbatches", "rounds",
)  # fmt: skip
"""Fields that may change between two parts of one run: they watch it or say where it runs, and do
not steer it."""


def defaults(cls: type = Settings) -> Any:
    """A ConfigDict of all fields but `model` at their defaults, for a config file to start from.

    With `Lora`, of its fields: groups that may be None are so at first.
    """
    from ml_collections import ConfigDict

    return ConfigDict(_default_tree(cls))


def from_config(config: Any) -> Settings:
    """Settings from a ConfigDict or a mapping.

    Raises:
        ValueError: a field that does not exist (the nearest one is named), is missing, or has a
            value of the wrong type or out of range.
    """
    tree = config.to_dict() if hasattr(config, "to_dict") else config
    return _build(Settings, tree, "config")


def explain_override(argument: str) -> str | None:
    """What is wrong with a `--config.a.b=…` argument's path, or None where it names a field."""
    path = argument.lstrip("-").split("=", 1)[0].split(".")[1:]
    kind: Any = Settings
    for depth, name in enumerate(path):
        if not dataclasses.is_dataclass(kind):
            return None
        names = [f.name for f in dataclasses.fields(kind)]
        if name not in names:
            return _unknown(name, names, ".".join(["config", *path[:depth]]))
        kind = typing.get_type_hints(kind)[name]
        kind = next(filter(dataclasses.is_dataclass, typing.get_args(kind)), kind)
    return None


def _build(cls: type, tree: Any, where: str) -> Any:
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where}={tree!r} must be a group of fields, as {cls.__name__} has them")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in tree:
        if name not in fields:
            raise ValueError(_unknown(name, list(fields), where))
    hints, values = typing.get_type_hints(cls), {}
    for name, spec in fields.items():
        if name in tree:
            values[name] = _convert(hints[name], tree[name], f"{where}.{name}")
        elif spec.default is spec.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}.{name} is missing: set it, it has no default")
    try:
        return cls(**values)
    except ValueError as e:
        raise ValueError(f"config: {e}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        for option in args:
            if option is not type(None) and _fits(option, value):
                return _convert(option, value, where)
        options = " or ".join(getattr(a, "__name__", str(a)) for a in args)
        raise ValueError(f"{where}={value!r} must be {options}")
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{where}={value!r} must be one of {', '.join(map(str, args))}")
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if not _fits(hint, value):
        raise ValueError(f"{where}={value!r} must be of type {getattr(hint, '__name__', hint)}")
    return float(value) if hint is float else value


def _fits(hint: Any, value: Any) -> bool:
    hint = typing.get_origin(hint) or hint
    if dataclasses.is_dataclass(hint):
        return isinstance(value, Mapping)
    if isinstance(value, bool):
        return hint in (bool, Any)
    if hint is float:
        return isinstance(value, int | float)
    if hint is tuple:
        return isinstance(value, list | tuple)
    return hint is Any or isinstance(value, hint)


def _default_tree(cls: type) -> dict:
    from ml_collections import config_dict

    tree, hints = {}, typing.get_type_hints(cls)
    for spec in dataclasses.fields(cls):
        hint = hints[spec.name]
        if dataclasses.is_dataclass(hint):
            tree[spec.name] = _default_tree(hint)
            continue
        if spec.default is not dataclasses.MISSING:
            value = spec.default
        elif spec.default_factory is not dataclasses.MISSING:
            value = spec.default_factory()
        else:
            continue
        options = [a for a in typing.get_args(hint) if a is not type(None)]
        if value is None and not dataclasses.is_dataclass(options[0]):
            kind = object if len(options) > 1 else typing.get_origin(options[0]) or options[0]
            value = config_dict.placeholder(kind)
        tree[spec.name] = value
    return tree


def _unknown(name: str, names: list[str], where: str) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {where}.{near[0]}?" if near else f"fields are {', '.join(names)}"
    return f"{where}.{name} is no field: {hint}"


def _positive(where: str, value: object, *names: str) -> None:
    _require(where, value, names, "must be positive", lambda x: x > 0)


def _not_negative(where: str, value: object, *names: str) -> None:
    _require(where, value, names, "must not be negative", lambda x: x >= 0)


def _require(
    where: str, value: object, names: Sequence[str], words: str, holds: Callable[[float], bool]
) -> None:
    for name in names:
        found = getattr(value, name)
        if found is None:
            continue
        if not abs(found) < math.inf:
            words, holds = "must be a finite number", lambda x: False
        if not holds(found):
            raise ValueError(f"{where}{'.' if where else ''}{name}={found} {words}")
