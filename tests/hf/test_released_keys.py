"""Keys as released files have them, where they are unlike what transformers writes now.

`released/` holds configs of releases by preset, without keys of training, tokens and vision.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from zoo import models

FILES = {
    path.stem: json.loads(path.read_text())
    for path in sorted((Path(__file__).parent / "released").glob("*.json"))
}
# Those whose text part is a preset's with another theta and length.
TEXT_PARTS = {
    "qwen2-vl-2b": ("qwen2-1.5b", 1e6, 32768),
    "qwen3-vl-2b": ("qwen3-1.7b", 5e6, 262144),
    "qwen3-vl-30b-a3b": ("qwen3-30b-a3b", 5e6, 262144),
}

GEMMA_3_4B = json.loads("""{
  "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999,
  "eoi_token_index": 256000, "eos_token_id": [1, 106], "image_token_index": 262144,
  "initializer_range": 0.02, "mm_tokens_per_image": 256, "model_type": "gemma3",
  "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
    "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024},
  "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
  "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"}}""")
GEMMA_7B = json.loads("""{
  "architectures": ["GemmaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 2, "eos_token_id": 1, "head_dim": 256, "hidden_act": "gelu",
  "hidden_activation": null, "hidden_size": 3072, "initializer_range": 0.02,
  "intermediate_size": 24576, "max_position_embeddings": 8192, "model_type": "gemma",
  "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 16,
  "pad_token_id": 0, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 10000.0,
  "torch_dtype": "bfloat16", "use_cache": true, "vocab_size": 256000}""")
K_EXAONE = json.loads("""{
  "architectures": ["ExaoneMoEForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
  "dtype": "bfloat16", "eos_token_id": 53, "first_k_dense_replace": 1, "head_dim": 128,
  "hidden_act": "silu", "hidden_size": 6144, "initializer_range": 0.02,
  "intermediate_size": 18432, "max_position_embeddings": 262144, "model_type": "exaone_moe",
  "moe_intermediate_size": 2048, "mtp_layer_types": ["full_attention"],
  "mtp_sliding_windows": [0], "n_group": 1, "norm_topk_prob": true, "num_attention_heads": 64,
  "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
  "num_key_value_heads": 8, "num_nextn_predict_layers": 1, "num_shared_experts": 1,
  "pad_token_id": 0, "rms_norm_eps": 1e-05, "rope_parameters": {"rope_theta": 1000000,
    "rope_type": "default"}, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
  "sliding_window": 128, "sliding_window_pattern": "LLLG", "tie_word_embeddings": false,
  "topk_group": 1, "topk_method": "noaux_tc", "use_cache": true, "vocab_size": 153600}""")
K_EXAONE["is_moe_layer"] = [i > 0 for i in range(48)]
K_EXAONE["sliding_windows"] = [128, 128, 128, 0] * 12
MELLUM_2 = json.loads("""{
  "architectures": ["MellumForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 0, "dtype": "bfloat16", "eos_token_id": 28, "head_dim": 128,
  "hidden_act": "silu", "hidden_size": 2304, "initializer_range": 0.02, "intermediate_size": 7168,
  "max_position_embeddings": 131072, "max_window_layers": 0, "model_type": "mellum",
  "moe_intermediate_size": 896, "norm_topk_prob": true, "num_attention_heads": 32,
  "num_experts": 64, "num_experts_per_tok": 8, "num_hidden_layers": 28, "num_key_value_heads": 4,
  "output_router_logits": false, "rms_norm_eps": 1e-06, "rope_parameters": {
    "full_attention": {"attention_factor": 1.2772588722239782, "beta_fast": 32.0,
      "beta_slow": 1.0, "factor": 16.0, "original_max_position_embeddings": 8192,
      "rope_theta": 500000.0, "rope_type": "yarn"},
    "sliding_attention": {"rope_theta": 500000.0, "rope_type": "default"}},
  "router_aux_loss_coef": 0.001, "sliding_window": 1024, "tie_word_embeddings": false,
  "use_cache": true, "use_sliding_window": true, "vocab_size": 98304}""")
MELLUM_2["layer_types"] = [*["sliding_attention"] * 3, "full_attention"] * 7
MELLUM_2["mlp_layer_types"] = ["sparse"] * 28
GRANITE_SWASH = json.loads("""{
  "architectures": ["GraniteSWAForCausalLM"], "attention_bias": false,
  "attention_multiplier": 0.0078125, "bos_token_id": 100257, "embedding_multiplier": 12,
  "eos_token_id": 100257, "hidden_act": "silu", "hidden_size": 2560, "initializer_range": 0.1,
  "intermediate_size": 8192, "logits_scaling": 10, "max_position_embeddings": 8192,
  "mlp_bias": false, "model_type": "granite_swa", "num_attention_heads": 20,
  "num_hidden_layers": 24, "num_key_value_heads": 4, "pad_token_id": 100256,
  "residual_multiplier": 0.28, "rms_norm_eps": 1e-05, "rope_theta": 10000, "sliding_window": 128,
  "tie_word_embeddings": true, "vocab_size": 100352}""")
GRANITE_SWASH["layer_types"] = ["full_attention", *["sliding_attention"] * 3] * 6
OLMO_3_7B = json.loads("""{
  "architectures": ["Olmo3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008,
  "max_position_embeddings": 65536, "model_type": "olmo3", "num_attention_heads": 32,
  "num_hidden_layers": 32, "num_key_value_heads": 32, "rms_norm_eps": 1e-06,
  "rope_scaling": {"attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0,
    "factor": 8.0, "original_max_position_embeddings": 8192, "rope_type": "yarn"},
  "rope_theta": 500000, "sliding_window": 4096, "tie_word_embeddings": false,
  "vocab_size": 100278}""")
PHI_4_MINI = json.loads("""{
  "architectures": ["Phi3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "embd_pdrop": 0.0, "full_attn_mod": 1, "hidden_act": "silu", "hidden_size": 3072,
  "intermediate_size": 8192, "interpolate_factor": 1, "lm_head_bias": false,
  "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "phi3",
  "num_attention_heads": 24, "num_hidden_layers": 32, "num_key_value_heads": 8,
  "original_max_position_embeddings": 4096, "pad_token_id": 199999, "partial_rotary_factor": 0.75,
  "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 262144,
  "tie_word_embeddings": true, "vocab_size": 200064}""")
QWEN_25_VL_7B = json.loads("""{
  "architectures": ["Qwen2_5_VLForConditionalGeneration"], "attention_dropout": 0.0,
  "bos_token_id": 151643, "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 3584,
  "image_token_id": 151655, "initializer_range": 0.02, "intermediate_size": 18944,
  "max_position_embeddings": 128000, "max_window_layers": 28, "model_type": "qwen2_5_vl",
  "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
  "rms_norm_eps": 1e-06, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
  "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": false,
  "torch_dtype": "bfloat16", "use_cache": true, "use_sliding_window": false,
  "video_token_id": 151656, "vision_config": {"depth": 32, "model_type": "qwen2_5_vl"},
  "vision_end_token_id": 151653, "vision_start_token_id": 151652, "vision_token_id": 151654,
  "vocab_size": 152064}""")
_SCALING = models.config("phi-4-mini").layers[0].mixer.rope.scaling
PHI_4_MINI["rope_scaling"] = {
    "type": "longrope", "short_factor": list(_SCALING.short), "long_factor": list(_SCALING.long)
}  # fmt: skip
PHI_MOE = {
    "architectures": ["PhiMoEForCausalLM"],
    "model_type": "phimoe",
    "hidden_size": 128,
    "original_max_position_embeddings": 16,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.5, 2.5],
        "long_factor": [3.5, 4.5],
        "short_mscale": 1.25,
        "long_mscale": 1.5,
        "original_max_position_embeddings": 16,
    },
}
RELEASED = {
    "gemma-3-4b": GEMMA_3_4B,
    "gemma-7b": GEMMA_7B,
    "granite-swash-2b": GRANITE_SWASH,
    "k-exaone-236b-a23b": K_EXAONE,
    "mellum2-12b-a2.5b": MELLUM_2,
    "olmo-3-7b": OLMO_3_7B,
    "phi-4-mini": PHI_4_MINI,
    **{name: hf for name, hf in FILES.items() if name not in TEXT_PARTS},
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_configs_are_the_presets(name):
    assert models.config_from_hf(RELEASED[name]) == models.config(name)


@pytest.mark.parametrize("name", TEXT_PARTS)
def test_released_text_parts_are_nearly_presets(name):
    preset, theta, length = TEXT_PARTS[name]
    hf = models.config_to_hf(models.config(preset))
    near = models.config_from_hf({**hf, "rope_theta": theta, "max_position_embeddings": length})
    assert models.config_from_hf(FILES[name]) == near


def test_the_whole_says_whether_qwen3_vl_is_tied():
    hf = FILES["qwen3-vl-30b-a3b"]
    text = {**hf["text_config"], "tie_word_embeddings": True}  # the default of its class
    assert not models.config_from_hf({**hf, "text_config": text}).tie_embeddings


def test_other_spellings_of_glm_5_2():
    """As transformers 5.11 wrote it."""
    spelled = {"layer_types": ["deepseek_sparse_attention"] * 78, "num_experts": 256}
    assert models.config_from_hf(FILES["glm-5.2"] | spelled) == models.config("glm-5.2")


def test_kimi_k2_0905_is_k2_with_longer_waves():
    hf = FILES["kimi-k2"]
    longer = {"rope_scaling": hf["rope_scaling"] | {"factor": 64.0}}
    found = models.config_from_hf(hf | longer | {"max_position_embeddings": 262144})
    assert found == models.config("kimi-k2-0905")


def test_longrope_without_factors_has_that_of_both_lengths():
    """sqrt(1 + ln 32 / ln 4096) = 1.1902 (arXiv:2402.13753)."""
    assert _SCALING.short_factor == _SCALING.long_factor == pytest.approx(1.1902, abs=1e-4)


def test_text_beside_vision_is_read_as_if_it_were_apart():
    """Qwen2.5-VL's text part is Qwen2.5 but for its length, whichever way it is written."""
    found = models.config_from_hf(QWEN_25_VL_7B)
    assert found == replace(models.config("qwen2.5-7b"), max_length=128000)
    outer = ("architectures", "image_token_id", "model_type", "video_token_id", "vision_config")
    text = {key: value for key, value in QWEN_25_VL_7B.items() if key not in outer}
    text = {key: value for key, value in text.items() if not key.startswith("vision_")}
    apart = {key: QWEN_25_VL_7B[key] for key in outer} | {"text_config": text}
    assert models.config_from_hf(apart) == found


def test_released_keys_of_mimo_say_what_the_class_takes_for_granted():
    hf = models.config_to_hf(models.config("mimo-v2-flash"))
    pattern = [int(kind == "sliding_attention") for kind in hf.pop("layer_types")]
    sparse = [int(kind == "sparse") for kind in hf.pop("mlp_layer_types")]
    released = {
        "sliding_window": 128, "sliding_window_size": 128, "hybrid_layer_pattern": pattern,
        "moe_layer_freq": sparse, "routed_scaling_factor": None, "swa_num_key_value_heads": 8,
    }  # fmt: skip
    hf |= released
    del hf["rope_parameters"]
    assert models.config_from_hf(hf) == models.config("mimo-v2-flash")
    with pytest.raises(ValueError, match="swa_num_key_value_heads=4"):
        models.config_from_hf({**hf, "swa_num_key_value_heads": 4})


def test_laguna_gates_heads_or_their_elements():
    hf = {"model_type": "laguna", "gating": "per-element"}
    cfg = models.config_from_hf(hf)
    assert not cfg.layers[0].mixer.gate_heads
    assert models.config_to_hf(cfg)["gating"] == "per-element"
    assert models.config_from_hf({**hf, "gating": True}).layers[0].mixer.gate_heads


@pytest.mark.parametrize("name", ["su", "yarn"])
def test_first_names_of_longrope(name):
    scaling = {**PHI_4_MINI["rope_scaling"], "type": name}
    hf = {**PHI_4_MINI, "rope_scaling": scaling}
    assert models.config_from_hf(hf) == models.config("phi-4-mini")


def test_phimoe_turns_by_the_divisors_of_short_texts():
    scaling = models.config_from_hf(PHI_MOE).layers[0].mixer.rope.scaling
    assert scaling.short == scaling.long == (1.5, 2.5)
    assert (scaling.short_factor, scaling.long_factor) == (1.25, 1.5)


_PLAIN = {"rope_type": "default", "rope_theta": 1e4}
_LENGTH = "original_max_position_embeddings"
_LAGUNA, _MAVERICK = FILES["laguna-xs.2"], FILES["llama-4-maverick"]
_GEMMA_3 = {"model_type": "gemma3_text"}


@pytest.mark.parametrize(
    ("hf", "change", "message"),
    [
        (GEMMA_7B, {"hidden_activation": "silu"}, "'silu'.*hidden_act='gelu' says"),
        (GEMMA_7B, {"use_bidirectional_attention": True}, "only causal attention"),
        (_GEMMA_3, {"rope_parameters": _PLAIN}, "full_attention and sliding_attention"),
        (_GEMMA_3, {"rope_parameters": {"full_attention": _PLAIN}}, "one rotation each"),
        (
            _GEMMA_3,
            {
                "rope_parameters": {"full_attention": _PLAIN, "sliding_attention": _PLAIN},
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            },
            "keep one",
        ),
        (_GEMMA_3, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        (K_EXAONE, {"is_moe_layer": [True] * 48}, "is_moe_layer.*first_k_dense_replace say"),
        (K_EXAONE, {"sliding_windows": [128] * 48}, "sliding_windows.*layer_types say"),
        (K_EXAONE, {"sliding_window_pattern": "LLLX"}, "letters L and G"),
        (K_EXAONE, {"mtp_sliding_windows": [128]}, "mtp_layer_types say"),
        (K_EXAONE, {"mtp_layer_types": ["chunked"]}, "mtp_layer_types.*one kind"),
        (K_EXAONE, {"num_nextn_predict_layers": 2}, "no file has more than 1"),
        (MELLUM_2, {"num_mtp_layers": 1, "mtp_layer_types": ["chunked"]}, "with sliding_window"),
        (MELLUM_2, {"num_mtp_layers": 1, "mtp_mlp_layer_types": ["moe"]}, "sparse, dense"),
        (MELLUM_2, {"max_window_layers": 4}, "max_window_layers=4.*only 0"),
        (OLMO_3_7B, {"rope_theta": 1e4}, "transformers 4 and 5 differ"),
        (PHI_4_MINI, {"lm_head_bias": True}, "lm_head_bias=True"),
        (
            PHI_4_MINI,
            {
                "rope_scaling": {
                    **PHI_4_MINI["rope_scaling"], "original_max_position_embeddings": 8192
                }
            },
            "original_max_position_embeddings=4096",
        ),
        (QWEN_25_VL_7B, {"head_dim": 64, "audio_config": {}}, "audio_config={}"),
        ({"model_type": "laguna"}, {"gating": False}, "gating=False.*known are true"),
        (
            {"model_type": "laguna"},
            {"num_attention_heads_per_layer": [48]},
            "it needs a number for each of 40 layers",
        ),
        (_LAGUNA, {"gating_types": ["per_element"] * 40}, "gating_types.*gating say"),
        (_LAGUNA, {"mlp_only_layers": [0, 1]}, r"mlp_only_layers.*mlp_layer_types say \[0\]"),
        (
            _LAGUNA,
            {"rope_parameters": {**_LAGUNA["rope_parameters"], _LENGTH: 8192}},
            "8192.*full_attention says 4096",
        ),
        (FILES["gemma-2-9b"], {"sliding_window_size": 8192}, "other keys say 4096"),
        (FILES["glm-5.2"], {"num_experts": 128}, "num_experts=128.*other keys say 256"),
        (FILES["glm-5.2"], {"indexer_rope_interleave": False}, "only True"),
        (FILES["hunyuan-a13b"], {"num_shared_expert": 2}, "num_shared_expert=2"),
        (
            _MAVERICK,
            {"text_config": {**_MAVERICK["text_config"], "nope_layer_interval": 3}},
            "nope_layer_interval=3.*other keys say 4",
        ),
        *(
            (
                {"model_type": family},
                {"use_sliding_window": True, "max_window_layers": None},
                "max_window_layers=None.*whole number",
            )
            for family in ("qwen2", "qwen2_moe", "qwen3")
        ),
        (PHI_MOE, {"original_max_position_embeddings": 32}, "rope_scaling says 16"),
        (PHI_MOE, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "only longrope"),
        (PHI_MOE, {"architectures": ["PhiMoE"]}, "only PhimoeForCausalLM or PhiMoEForCausalLM"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_named(hf, change, message):
    with pytest.raises(ValueError, match=message):
        models.config_from_hf({**hf, **change})
