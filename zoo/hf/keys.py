"""Reading a Hugging Face config so that nothing in it is dropped silently.

Every key must be used by the family's reader, be known not to change the model, or equal the value
that the family's config class has by default. Anything else is an error that names the key: a key
ignored is how ports go wrong without a warning.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping

from zoo.config import Activation

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
        if (name in _KINDS or kind in _WORDS) and value is not None and not is_kind(value, kind):
            raise self.error(name, f"it must be {words(kind)}")
        return value

    def alias(self, name: str, other: str) -> str:
        """Which of two names for one key the config gives; `name` if neither."""
        if name in self and other in self:
            raise self.error(other, f"{name} says the same; keep one")
        return other if other in self else name

    def integer(self, name: str, least: int = 1) -> int:
        """A size: a whole number, which JSON may hold as 32.0, not below `least`."""
        value = self[name]
        if not is_kind(value, int) or value < least:
            raise self.error(name, f"it must be a whole number from {least} on")
        return int(value)

    def count(self, name: str) -> int:
        """How many there are of what may be missing: a whole number, 0 for None."""
        return 0 if self.get(name) is None else self.integer(name, least=0)

    def number(self, name: str) -> float:
        """A factor or the like: a finite number above 0."""
        value = self[name]
        if not is_kind(value, float) or value <= 0:
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


def is_kind(value: object, kind: object) -> bool:
    """Whether a value is of a kind; JSON has 1 for true, 32.0 for 32 and 2 for 2.0."""
    if isinstance(kind, tuple):
        return any(is_kind(value, each) for each in kind)
    if isinstance(kind, list):
        return isinstance(value, list | tuple) and all(is_kind(item, kind[0]) for item in value)
    if kind in (int, float):
        found = not isinstance(value, bool) and isinstance(value, int | float)
        return found and math.isfinite(value) and (kind is float or value == int(value))
    return isinstance(value, int if kind is bool else kind)


def words(kind: object) -> str:
    """What a kind is called in errors."""
    if isinstance(kind, tuple):
        return " or ".join(map(words, kind))
    return f"a list, each {words(kind[0])}" if isinstance(kind, list) else _WORDS[kind]


def activation_name(act: Activation) -> str:
    """The name that transformers has for an activation."""
    return "gelu_pytorch_tanh" if act == "gelu_tanh" else act
