"""Reading a Hugging Face config so that nothing in it is dropped silently.

Every key must be used by the family's reader, be known not to change the model, or equal the value
that the family's config class has by default. Anything else is an error that names the key: a key
ignored is how ports go wrong without a warning.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from typing import Any

from zoo.config import (
    Activation,
    LinearScaling,
    Llama3Scaling,
    LongRope,
    Rope,
    Scaling,
    YarnScaling,
)
from zoo.rope import yarn_mscale

# Keys that describe files, training, generation or classification heads, not the decoder.
# (`zoo.hf.quantization` reads quantization_config: how tensors are stored, not what they mean.)
IRRELEVANT = frozenset({
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_name_or_path",
    "architectures", "attn_implementation", "auto_map", "bos_token_id", "chunk_size_feed_forward",
    "dtype", "eos_token_id", "id2label", "initializer_range", "label2id", "model_type",
    "name_or_path", "num_labels", "output_attentions", "output_hidden_states",
    "output_router_logits", "output_scores", "pad_token_id", "pretraining_tp", "problem_type",
    "quantization_config", "return_dict", "return_dict_in_generate", "router_aux_loss_coef",
    "sep_token_id", "task_specific_params", "tokenizer_class", "torch_dtype", "torchscript",
    "transformers_version", "transformers.js_config", "use_bfloat16", "use_cache",
    "bad_words_ids", "begin_suppress_tokens", "decoder_start_token_id", "diversity_penalty",
    "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id",
    "forced_eos_token_id", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size",
    "num_beam_groups", "num_beams", "num_return_sequences", "prefix", "pruned_heads",
    "remove_invalid_values", "repetition_penalty", "suppress_tokens", "temperature",
    "tf_legacy_loss", "tie_encoder_decoder", "top_k", "top_p", "typical_p",
})  # fmt: skip
# What every family takes for granted; another value is an error.
COMMON = {
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "partial_rotary_factor": None,
    "per_layer_config": None,
    "rope_parameters": None,
    "rope_scaling": None,
    "rope_theta": 10_000.0,
}
# What keys hold whose default says it not, because it is None or one of several; [str] is a list.
_KINDS = {
    name: kind
    for kind, names in (
        (int, "head_dim kv_lora_rank n_group num_experts_per_tok num_key_value_heads num_mtp_layers"
              " num_nextn_predict_layers original_max_position_embeddings q_lora_rank rotary_dim"
              " sliding_window sliding_window_size topk_group"),
        (float, "attention_multiplier attn_logit_softcapping clip_qkv final_logit_softcapping"
                " partial_rotary_factor query_pre_attn_scalar"),
        (str, "hidden_activation"),
        (Mapping, "linear_attn_config rope_parameters rope_scaling"),
        ([int], "full_attn_layers kda_layers kv_layers mlp_only_layers moe_layers"
                " mtp_sliding_windows no_rope_layers num_attention_heads_per_layer"),
        ([float], "layer_rope_theta"),
        ([str], "indexer_types layer_types mlp_layer_types mtp_layer_types mtp_mlp_layer_types"),
        ((bool, str), "gating"),
        ((int, str), "sliding_window_pattern"),
        ((int, [int]), "moe_layer_num_skipped moe_topk num_experts num_shared_expert"
                       " num_shared_experts"),
    )
    for name in names.split()
}  # fmt: skip
_WORDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a string",
    Mapping: "an object",
}  # fmt: skip
_HINTS = {
    "attention_dropout": "dropout is not implemented; set it to 0.0 if it was for training only",
}
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


class Keys:
    """A config dict that remembers which keys were read.

    `keys["hidden_size"]` is the config's value, or the class's default if the key is absent.
    `names` are what most families call keys -> what this one does, which errors name.
    """

    def __init__(
        self,
        hf: Mapping,
        defaults: Mapping,
        irrelevant: frozenset[str] = frozenset(),
        names: Mapping[str, str] = types.MappingProxyType({}),
    ):
        self.family = str(hf.get("model_type"))
        self._hf = hf
        self._defaults = {**COMMON, **defaults}
        self._done = IRRELEVANT | irrelevant
        self._used: set[str] = set()
        self._names = names

    def __getitem__(self, name: str):
        if name not in self and not self.knows(name):
            raise KeyError(name)
        return self.get(name)

    def __contains__(self, name: str) -> bool:
        return self._names.get(name, name) in self._hf

    def knows(self, name: str) -> bool:
        """Whether the class has such a key."""
        return self._names.get(name, name) in self._defaults

    def get(self, name: str):
        """A key that the class may not have, or None.

        Raises:
            ValueError: what the config has is neither None nor of the kind that the key holds.
        """
        name = self._names.get(name, name)
        self._used.add(name)
        default = self._defaults.get(name)
        value = self._hf.get(name, default)
        kind = _KINDS.get(name, type(default))
        if (name in _KINDS or kind in _WORDS) and value is not None and not _is(value, kind):
            raise self.error(name, f"it must be {_words(kind)}")
        return value

    def alias(self, name: str, other: str) -> str:
        """Which of two names for one key the config gives; `name` if neither."""
        if name in self and other in self:
            raise self.error(other, f"{name} says the same; keep one")
        return other if other in self else name

    def integer(self, name: str, least: int = 1) -> int:
        """A size: a whole number, which JSON may hold as 32.0, not below `least`."""
        value = self[name]
        if not _is(value, int) or value < least:
            raise self.error(name, f"it must be a whole number from {least} on")
        return int(value)

    def count(self, name: str) -> int:
        """How many there are of what may be missing: a whole number, 0 for None."""
        return 0 if self.get(name) is None else self.integer(name, least=0)

    def number(self, name: str) -> float:
        """A factor or the like: a finite number above 0."""
        value = self[name]
        if not _is(value, float) or value <= 0:
            raise self.error(name, "it must be a number above 0")
        return float(value)

    def activation(self, name: str = "hidden_act") -> Activation:
        if self[name] not in _ACTIVATIONS:
            raise self.error(name, f"known are {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[self[name]]

    def agree(self, name: str, value: object, others: str) -> None:
        """Raises ValueError if the config gives `name` and it is not what `others` say."""
        if self.get(name) not in (None, value):
            raise self.error(name, f"{others} say {value}")

    def error(self, name: str, fix: str) -> ValueError:
        return self._error(self._names.get(name, name), fix)

    def _error(self, name: str, fix: str) -> ValueError:
        value = self._hf.get(name, self._defaults.get(name))
        return ValueError(f"{self.family} config: {name}={value!r} is not understood: {fix}")

    def close(self) -> None:
        """Raises ValueError for the first key that was neither read nor harmless."""
        for name, value in self._hf.items():
            if name in self._used or name in self._done:
                continue
            if name not in self._defaults:
                fix = "remove it from the config if the model's output does not depend on it"
            elif value != self._defaults[name]:
                fix = f"only {self._defaults[name]!r} is implemented"
            else:
                continue
            raise self._error(name, _HINTS.get(name, fix))


def _is(value: object, kind: object) -> bool:
    """Whether a value is of a kind; JSON has 1 for true, 32.0 for 32 and 2 for 2.0."""
    if isinstance(kind, tuple):
        return any(_is(value, each) for each in kind)
    if isinstance(kind, list):
        return isinstance(value, list | tuple) and all(_is(item, kind[0]) for item in value)
    if kind in (int, float):
        found = not isinstance(value, bool) and isinstance(value, int | float)
        return found and math.isfinite(value) and (kind is float or value == int(value))
    return isinstance(value, int if kind is bool else kind)


def _words(kind: object) -> str:
    if isinstance(kind, tuple):
        return " or ".join(map(_words, kind))
    return f"a list, each {_words(kind[0])}" if isinstance(kind, list) else _WORDS[kind]


def activation_name(act: Activation) -> str:
    """The name that transformers has for an activation."""
    return "gelu_pytorch_tanh" if act == "gelu_tanh" else act


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
        if value is not None and not _is(value, kind):
            raise self.keys.error(self.name, f"{key} must be {_words(kind)}")
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
