"""Rotary embeddings of Hugging Face configs: `rope_theta`, `rope_scaling` and `rope_parameters`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from zoo.config import LinearScaling, Llama3Scaling, LongRope, Rope, Scaling, YarnScaling
from zoo.hf.keys import Keys, is_kind, words
from zoo.rope import yarn_mscale


def read_rope(
    keys: Keys,
    dim: int,
    interleaved: bool = False,
    wide: bool = False,
    layer_type: str | None = None,
    theta_key: str = "rope_theta",
    partial: bool = False,
    take: Callable[[Fields], None] = lambda fields: None,
) -> Rope:
    """The rotation of a config, by old keys (rope_theta, rope_scaling) or new (rope_parameters).

    Follows `modeling_rope_utils.py` of transformers: `rope_scaling` wins over `rope_parameters`,
    theta inside the dict wins over `rope_theta`.

    Args:
        keys: the config.
        dim: of a head; `partial` families rotate `partial_rotary_factor` of it.
        interleaved: as in `Rope`, and so `wide`.
        layer_type: which to read where rope_parameters holds one rotation per layer type.
        theta_key: the key of theta outside of the dict.
        partial: whether the family's modelling code reads `partial_rotary_factor`.
        take: reads what only the family itself understands.
    """
    new, old, outside = keys["rope_parameters"], keys["rope_scaling"], keys[theta_key]
    name = "rope_scaling" if old else "rope_parameters"
    left = dict(old or new or {})
    if layer_type is not None and isinstance(left.get(layer_type), Mapping):
        left = dict(left[layer_type])
    for key, value in left.items():
        if isinstance(value, Mapping):
            raise keys.error(name, f"a rotation per layer type ({key}) is not implemented")
    fields = Fields(keys, name, left)
    take(fields)
    kinds = [left.pop(k) for k in ("rope_type", "type") if k in left] or ["default"]
    if kinds[0] != kinds[-1]:
        raise keys.error(name, "rope_type and type differ; keep one")
    theta = fields.number("rope_theta", outside)
    if theta is None:
        raise keys.error(theta_key, "it must be a number")
    outside = keys["partial_rotary_factor"]
    fraction = fields.number("partial_rotary_factor") or outside or 1.0
    if fraction != 1.0 and not partial:
        raise keys.error("partial_rotary_factor", "this family rotates whole heads")
    dim = int(dim * fraction)
    scaling = _scaling(fields, kinds[0])
    if left:
        unused = ", ".join(sorted(left))
        raise keys.error(name, f"{kinds[0]} rope does not use {unused}; remove it")
    return Rope(dim, theta, interleaved, scaling, wide)


class Fields:
    """What is `left` of a rotation's dict, `name` in the config; fields go as they are read."""

    def __init__(self, keys: Keys, name: str, left: dict):
        self.keys, self.name, self.left = keys, name, left

    def pop(self, key: str, kind: object, default: object = None) -> Any:
        """A field of a kind, or the default if there is none."""
        value = self.left.pop(key, default)
        if value is not None and not is_kind(value, kind):
            raise self.keys.error(self.name, f"{key} must be {words(kind)}")
        return value

    def number(self, key: str, default: float | None = None) -> float | None:
        value = self.pop(key, float)
        value = default if value is None else value
        return None if value is None else float(value)

    def need(self, key: str, kind: object = float) -> Any:
        if self.left.get(key) is None:
            raise self.keys.error(self.name, f"the rotation needs {key}")
        return self.pop(key, kind)

    def original_length(self, default: object) -> int:
        return int(self.pop("original_max_position_embeddings", int) or default)


def _scaling(fields: Fields, kind: object) -> Scaling | None:
    """Takes what a kind of scaling uses out of `fields`."""
    if kind == "default":
        return None
    longest = fields.keys.integer("max_position_embeddings")
    if kind == "linear":
        return LinearScaling(float(fields.need("factor")))
    if kind == "longrope":
        return _longrope(fields, longest)
    if kind == "llama3":
        factors = ("factor", "low_freq_factor", "high_freq_factor")
        return Llama3Scaling(
            *(float(fields.need(key)) for key in factors), fields.original_length(longest)
        )
    if kind == "yarn":
        original = fields.original_length(longest)
        return YarnScaling(
            factor=fields.number("factor", longest / original),
            original_length=original,
            beta_fast=fields.number("beta_fast") or 32.0,
            beta_slow=fields.number("beta_slow") or 1.0,
            mscale=fields.number("mscale") or None,  # transformers treats 0 as absent here
            mscale_all_dim=fields.number("mscale_all_dim") or None,
            attention_factor=fields.number("attention_factor"),
            truncate=fields.pop("truncate", bool, True),
        )
    raise fields.keys.error(
        fields.name,
        f"rope_type {kind!r} is not implemented; use default, linear, llama3, yarn, longrope",
    )


def _longrope(fields: Fields, longest: int) -> LongRope:
    """`_compute_longrope_parameters`: the factor comes from how much longer the context became."""
    original = fields.original_length(
        fields.keys.get("original_max_position_embeddings") or longest
    )
    short, far = (
        tuple(map(float, fields.need(key, [float]))) for key in ("short_factor", "long_factor")
    )
    ratio, given = fields.number("factor", longest / original), fields.number("attention_factor")
    given = longrope_factor(ratio, original) if given is None else given
    return LongRope(short, far, original, given, given)


def longrope_factor(ratio: float, original: int) -> float:
    """LongRoPE's factor on cos and sin, for `ratio` times the context of `original` tokens."""
    return 1.0 if ratio <= 1.0 else math.sqrt(1 + math.log(ratio) / math.log(original))


def write_rope(rope: Rope) -> dict:
    """`rope_theta` and `rope_scaling`: keys that transformers 4 and 5 both read."""
    s = rope.scaling
    if s is None:
        scaling = None
    elif isinstance(s, LinearScaling):
        scaling = {"rope_type": "linear", "type": "linear", "factor": s.factor}
    elif isinstance(s, LongRope):
        scaling = {
            "rope_type": "longrope",
            "type": "longrope",
            "short_factor": list(s.short),
            "long_factor": list(s.long),
            "original_max_position_embeddings": s.original_length,
            "attention_factor": s.short_factor,
        }
    elif isinstance(s, Llama3Scaling):
        scaling = {
            "rope_type": "llama3",
            "factor": s.factor,
            "low_freq_factor": s.low_freq_factor,
            "high_freq_factor": s.high_freq_factor,
            "original_max_position_embeddings": s.original_length,
        }
    else:
        scaling = {
            "rope_type": "yarn",
            "type": "yarn",
            "factor": s.factor,
            "original_max_position_embeddings": s.original_length,
            "beta_fast": s.beta_fast,
            "beta_slow": s.beta_slow,
        }
        optional = {
            "mscale": s.mscale,
            "mscale_all_dim": s.mscale_all_dim,
            "attention_factor": s.attention_factor,
            "truncate": None if s.truncate else False,
        }
        scaling |= {k: v for k, v in optional.items() if v is not None}
    return {"rope_theta": rope.theta, "rope_scaling": scaling}


def yarn_softmax_factor(rope: Rope) -> float:
    """What DeepSeek multiplies its softmax scale by under YaRN, m(mscale_all_dim)**2.

    `yarn_apply_mscale` in transformers' modeling_deepseek_v3.py.
    """
    s = rope.scaling
    if not isinstance(s, YarnScaling) or not s.mscale_all_dim:
        return 1.0
    return yarn_mscale(s.factor, s.mscale_all_dim) ** 2
