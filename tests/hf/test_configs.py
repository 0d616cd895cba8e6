"""Reading and writing config.json: everything in it counts, and nothing is dropped silently."""

from __future__ import annotations

import dataclasses
import json

import pytest

from zoo import models
from zoo.config import LinearScaling, Llama3Scaling, MoE, Stack, YarnScaling
from zoo.hf.layout import shapes

# As released: keys of older transformers, custom code and training left in.
LLAMA_31 = json.loads("""{
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu",
  "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
  "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
  "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
  "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3"},
  "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
  "transformers_version": "4.42.3", "use_cache": true, "vocab_size": 128256}""")
QWEN3_06B = json.loads("""{
  "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
  "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072,
  "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
  "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
  "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
  "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
  "use_cache": true, "use_sliding_window": false, "vocab_size": 151936}""")
QWEN3_30B = json.loads("""{
  "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128,
  "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
  "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48,
  "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768,
  "norm_topk_prob": true, "num_attention_heads": 32, "num_experts": 128,
  "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4,
  "output_router_logits": false, "rms_norm_eps": 1e-06, "rope_scaling": null,
  "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": null,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
  "use_cache": true, "use_sliding_window": false, "vocab_size": 151936}""")
DEEPSEEK_V3 = json.loads("""{
  "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}, "bos_token_id": 0,
  "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu",
  "hidden_size": 7168, "initializer_range": 0.02, "intermediate_size": 18432,
  "kv_lora_rank": 512, "max_position_embeddings": 163840, "model_type": "deepseek_v3",
  "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256,
  "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 128,
  "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
  "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
  "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
  "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0,
    "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "type": "yarn"},
  "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
  "tie_word_embeddings": false, "topk_group": 4, "topk_method": "noaux_tc",
  "torch_dtype": "bfloat16", "transformers_version": "4.33.1", "use_cache": true,
  "v_head_dim": 128, "vocab_size": 129280}""")
UNREAD = {"attention_dropout", "max_window_layers", "residual_dropout"}  # by some families
RELEASED = {
    "llama-3.1-8b": LLAMA_31,
    "qwen3-0.6b": QWEN3_06B,
    "qwen3-30b-a3b": QWEN3_30B,
    "deepseek-v3": DEEPSEEK_V3,
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_configs_are_the_presets(name):
    assert models.config_from_hf(RELEASED[name]) == models.config(name)


@pytest.mark.parametrize("name", RELEASED)
def test_files_folders_and_dicts(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(RELEASED[name]))
    for where in (tmp_path, str(tmp_path / "config.json"), RELEASED[name]):
        assert models.config_from_hf(where) == models.config(name)


@pytest.mark.parametrize("name", RELEASED)
def test_new_style_keys_say_the_same(name):
    hf = dict(RELEASED[name])
    theta, scaling = hf.pop("rope_theta"), hf.pop("rope_scaling", None) or {}
    hf["rope_parameters"] = {"rope_theta": theta, "rope_type": "default", **scaling}
    if "type" in scaling:
        hf["rope_parameters"]["rope_type"] = scaling["type"]
    hf["dtype"] = hf.pop("torch_dtype")
    if "num_experts" in hf:
        hf["num_local_experts"] = hf.pop("num_experts")
    assert models.config_from_hf(hf) == models.config(name)


def test_kimi_k2_is_read_as_deepseek_v3():
    hf = models.config_to_hf(models.config("kimi-k2")) | {"model_type": "kimi_k2"}
    assert models.config_from_hf(hf) == models.config("kimi-k2")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama-3.1-8b", {"sliding_window": 4096}, "sliding_window=4096"),
        ("llama-3.1-8b", {"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ("llama-3.1-8b", {"hidden_act": "mish"}, "hidden_act='mish'.*known are silu"),
        ("llama-3.1-8b", {"hidden_size": "big"}, "hidden_size='big'"),
        ("llama-3.1-8b", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ("llama-3.1-8b", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ("llama-3.1-8b", {"rope_scaling": {"rope_type": "longrope"}}, "longrope"),
        ("llama-3.1-8b", {"rope_scaling": {"rope_type": "linear"}}, "rotation needs factor"),
        (
            "llama-3.1-8b",
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta": 1}},
            "does not use beta",
        ),
        (
            "llama-3.1-8b",
            {"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0}},
            "rope_type and type differ",
        ),
        (
            "llama-3.1-8b",
            {"rope_scaling": None, "rope_parameters": {"full_attention": {"rope_theta": 1.0}}},
            "per layer type",
        ),
        (
            "llama-3.1-8b",
            {"architectures": ["LlamaForTokenClassification"]},
            "only LlamaForCausalLM",
        ),
        ("llama-3.1-8b", {"model_type": "mamba"}, "Known are .*llama, .*qwen3"),
        ("qwen3-0.6b", {"layer_types": ["full_attention"]}, "all 28 layers"),
        (
            "qwen3-0.6b",
            {"layer_types": ["chunked_attention"] * 28},
            "full_attention or sliding_attention",
        ),
        (
            "qwen3-0.6b",
            {"layer_types": ["sliding_attention"] * 28},
            "need a sliding_window that is in use",
        ),
        ("qwen3-30b-a3b", {"num_local_experts": 128}, "num_local_experts=128.*keep one"),
        ("deepseek-v3", {"scoring_func": "softmax"}, "scoring_func='softmax'.*only 'sigmoid'"),
        ("deepseek-v3", {"topk_method": "greedy"}, "topk_method='greedy'"),
        ("deepseek-v3", {"num_key_value_heads": 8}, "must equal num_attention_heads=128"),
        ("deepseek-v3", {"index_topk": 2048}, "index_topk=2048"),
        ("deepseek-v3", {"mlp_bias": True}, "mlp_bias=True"),
        ("llama-3.1-8b", {"head_dim": None, "hidden_size": 4097}, "must divide hidden_size=4097"),
        ("llama-3.1-8b", {"tie_word_embeddings": "false"}, "must be true or false"),
    ],
)
def test_what_is_not_understood_is_named(name, change, message):
    with pytest.raises(ValueError, match=message):
        models.config_from_hf({**RELEASED[name], **change})


def test_a_value_of_another_kind_is_refused_by_name():
    of_each_family = {models.config(name).family: name for name in models.presets()}
    for name in of_each_family.values():
        hf = models.config_to_hf(models.config(name))
        for key in hf.keys() - UNREAD:
            wrong = 0.5 if isinstance(hf[key], str | list | dict) else "no"
            with pytest.raises(ValueError, match=key.removesuffix("s")):
                models.config_from_hf({**hf, key: wrong})


@pytest.mark.parametrize("name", ["granite-3.3-8b", "granite-3.1-1b-a400m", "seed-oss-36b"])
def test_dropout_of_families_whose_files_have_it_changes_nothing(name):
    cfg = models.config(name)
    assert models.config_from_hf({**models.config_to_hf(cfg), "attention_dropout": 0.1}) == cfg


def test_absent_keys_take_the_class_default():
    cfg = models.config_from_hf({"model_type": "llama"})
    assert models.config_to_hf(cfg) == models.config_to_hf(models.config("llama-2-7b")) | {
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
    }
    moe = models.config_from_hf({"model_type": "qwen3_moe"}).layers[0].ffn
    assert (moe.experts, moe.top_k, moe.renormalize) == (128, 8, False)


def test_windows_of_qwen3():
    on = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 20}
    cfg = models.config_from_hf({**QWEN3_06B, **on})
    assert [la.mixer.window for la in cfg.layers] == [None] * 20 + [64] * 8
    assert [s.repeats for s in cfg.stacks] == [20, 8]
    assert models.config_from_hf(models.config_to_hf(cfg)) == cfg
    moe = models.config_from_hf({**QWEN3_30B, **on})
    assert [la.mixer.window for la in moe.layers] == [64] * 48


def test_sparse_layers_of_qwen3_moe():
    hf = {**QWEN3_30B, "num_hidden_layers": 6, "mlp_only_layers": [3], "decoder_sparse_step": 2}
    cfg = models.config_from_hf(hf)
    assert [isinstance(la.ffn, MoE) for la in cfg.layers] == [
        False,
        True,
        False,
        False,
        False,
        True,
    ]
    assert models.config_from_hf(models.config_to_hf(cfg)) == cfg


def test_yarn_multiplies_deepseeks_softmax_scale():
    """m = 0.1 ln 40 + 1 = 1.3689, squared, over sqrt(192)."""
    assert models.config("deepseek-v3").layers[0].mixer.scale == pytest.approx(0.135233, rel=1e-5)
    plain = models.config_from_hf({**DEEPSEEK_V3, "rope_scaling": None})
    assert plain.layers[0].mixer.scale is None


@pytest.mark.parametrize(
    "scaling",
    [
        LinearScaling(4.0),
        Llama3Scaling(8.0, 1.0, 4.0, 64),
        YarnScaling(8.0, 64),
        YarnScaling(8.0, 64, 16.0, 2.0, 1.0, 0.5, None, False),
        YarnScaling(8.0, 64, attention_factor=1.5),
    ],
)
def test_scalings_round_trip(scaling):
    cfg = models.config("llama-2-7b")
    layer = cfg.layers[0]
    rope = dataclasses.replace(layer.mixer.rope, scaling=scaling)
    layer = dataclasses.replace(layer, mixer=dataclasses.replace(layer.mixer, rope=rope))
    cfg = dataclasses.replace(cfg, stacks=(Stack(32, (layer,)),))
    assert models.config_from_hf(json.loads(json.dumps(models.config_to_hf(cfg)))) == cfg


def test_a_config_that_its_family_cannot_express():
    cfg = dataclasses.replace(models.config("qwen3-0.6b"), family="llama")
    with pytest.raises(ValueError, match=r"llama cannot express.*qk_norm"):
        models.config_to_hf(cfg)
    with pytest.raises(ValueError, match=r"qwen3_moe cannot express"):
        models.config_to_hf(dataclasses.replace(cfg, family="qwen3_moe"))


def test_a_family_of_experts_writes_a_model_without_if_it_can():
    cfg = models.config("deepseek-v3")
    dense = dataclasses.replace(cfg, stacks=cfg.stacks[:1], mtp=())
    hf = models.config_to_hf(dense)
    assert (hf["first_k_dense_replace"], hf["num_hidden_layers"]) == (3, 3)
    assert not [key for key in hf if "expert" in key]
    assert models.config_from_hf(json.loads(json.dumps(hf))) == dense
    with pytest.raises(ValueError, match=r"deepseek_v2 cannot express.*no layer of a kind"):
        models.config_to_hf(dataclasses.replace(dense, family="deepseek_v2"))


def test_stacks_may_group_layers_otherwise():
    hf = {**QWEN3_30B, "num_hidden_layers": 4, "decoder_sparse_step": 2}
    cfg = models.config_from_hf(hf)
    dense, moe = cfg.layers[:2]
    grouped = dataclasses.replace(cfg, stacks=(Stack(2, (dense, moe)),))
    assert models.config_to_hf(grouped) == models.config_to_hf(cfg)
    assert shapes(grouped)["stack_0/layer_1/moe/gate/w"] == (2, 128, 2048, 768)


@pytest.mark.parametrize("text", ["{", "[]", '{"hidden_size": 8}'])
def test_broken_files(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"not JSON|not an object|no model_type"):
        models.config_from_hf(tmp_path)


def test_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"does not exist"):
        models.config_from_hf(tmp_path)


GPT_OSS_20B = json.loads("""{"architectures": ["GptOssForCausalLM"], "attention_bias": true,
  "attention_dropout": 0.0, "eos_token_id": 200002, "experts_per_token": 4, "head_dim": 64,
  "hidden_act": "silu", "hidden_size": 2880, "initial_context_length": 4096,
  "initializer_range": 0.02, "intermediate_size": 2880, "max_position_embeddings": 131072,
  "model_type": "gpt_oss", "num_attention_heads": 64, "num_experts_per_tok": 4,
  "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32,
  "output_router_logits": false, "pad_token_id": 199999, "rms_norm_eps": 1e-05,
  "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0,
    "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": false},
  "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0,
  "tie_word_embeddings": false, "use_cache": true, "vocab_size": 201088}""")


def test_gpt_oss_without_a_scaling_has_that_of_its_class():
    preset = models.config("gpt-oss-20b")
    kinds = ["sliding_attention", "full_attention"] * 12
    for change in ({}, {"layer_types": kinds}, {"rope_scaling": None}):
        assert models.config_from_hf({**GPT_OSS_20B, **change}) == preset
    plain = models.config_from_hf({**GPT_OSS_20B, "rope_scaling": {"rope_type": "default"}})
    assert plain.layers[0].mixer.rope.scaling is None
    assert models.config_from_hf(models.config_to_hf(plain)) == plain
    with pytest.raises(ValueError, match=r"layer_types=.*all 24 layers"):
        models.config_from_hf({**GPT_OSS_20B, "layer_types": kinds[1:]})


LLAMA_4_SCOUT = json.loads("""{"architectures": ["Llama4ForConditionalGeneration"],
  "boi_token_index": 200080, "eoi_token_index": 200081, "image_token_index": 200092,
  "model_type": "llama4", "tie_word_embeddings": false, "torch_dtype": "bfloat16",
  "text_config": {"attention_bias": false, "attention_chunk_size": 8192, "attention_dropout": 0.0,
    "attn_scale": 0.1, "attn_temperature_tuning": 4, "bos_token_id": 200000,
    "cache_implementation": "hybrid", "eos_token_id": [200001, 200007, 200008],
    "floor_scale": 8192, "for_llm_compressor": false, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 5120, "initializer_range": 0.02, "interleave_moe_layer_step": 1,
    "intermediate_size": 8192, "intermediate_size_mlp": 16384, "max_position_embeddings": 10485760,
    "model_type": "llama4_text", "no_rope_layers": [], "num_attention_heads": 40,
    "num_experts_per_tok": 1, "num_hidden_layers": 48, "num_key_value_heads": 8,
    "num_local_experts": 16, "output_router_logits": false, "pad_token_id": 200018,
    "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 16.0, "high_freq_factor": 1.0,
      "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 500000.0, "router_aux_loss_coef": 0.001, "router_jitter_noise": 0.0,
    "torch_dtype": "bfloat16", "use_cache": true, "use_qk_norm": true, "vocab_size": 202048},
  "vision_config": {"hidden_size": 1408, "model_type": "llama4_vision_model"}}""")


def test_llama4_is_read_out_of_the_whole():
    preset, text = models.config("llama-4-scout"), LLAMA_4_SCOUT["text_config"]
    assert models.config_from_hf(LLAMA_4_SCOUT) == preset
    alone = {**text, "no_rope_layers": [1, 1, 1, 0] * 12, "attn_temperature_tuning": True}
    assert models.config_from_hf(alone) == preset
    for change, message in (
        ({"no_rope_layers": [1, 0]}, "each of 48 layers"),
        ({"layer_types": ["chunked_attention"]}, "all 48 layers"),
        ({"attention_chunk_size": None}, "attention_chunk_size=None"),
        ({"use_rope_everywhere": True}, "use_rope_everywhere=True"),
    ):
        with pytest.raises(ValueError, match=message):
            models.config_from_hf({**text, **change})
