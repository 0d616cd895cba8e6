"""Configs and tensors as hybrids are released: layer lists, keys of custom code, fused experts.

The configs were written down from memory and default values, not copied from the repos.
"""

from __future__ import annotations

import json

import pytest

from zoo import models
from zoo.hf.table import expand

KIMI_LINEAR = json.loads("""{
  "architectures": ["KimiLinearForCausalLM"],
  "auto_map": {"AutoConfig": "configuration_kimi.KimiLinearConfig"}, "bos_token_id": 163584,
  "dtype": "bfloat16", "eos_token_id": 163586, "first_k_dense_replace": 1, "head_dim": 72,
  "hidden_act": "silu", "hidden_size": 2304, "initializer_range": 0.02,
  "intermediate_size": 9216, "kv_lora_rank": 512,
  "linear_attn_config": {"full_attn_layers": [4, 8, 12, 16, 20, 24, 27], "head_dim": 128,
    "kda_layers": [1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 17, 18, 19, 21, 22, 23, 25, 26],
    "num_heads": 32, "short_conv_kernel_size": 4},
  "mla_use_nope": true, "model_max_length": 1048576, "model_type": "kimi_linear",
  "moe_intermediate_size": 1024, "moe_layer_freq": 1, "moe_renormalize": true,
  "moe_router_activation_func": "sigmoid", "num_attention_heads": 32, "num_expert_group": 1,
  "num_experts": 256, "num_experts_per_token": 8, "num_hidden_layers": 27,
  "num_key_value_heads": 32, "num_nextn_predict_layers": 0, "num_shared_experts": 1,
  "pad_token_id": 163839, "q_lora_rank": null, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
  "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 10000.0,
  "routed_scaling_factor": 2.446, "tie_word_embeddings": false, "topk_group": 1,
  "use_cache": true, "use_grouped_topk": true, "v_head_dim": 128, "vocab_size": 163840}""")
QWEN3_NEXT = json.loads("""{
  "architectures": ["Qwen3NextForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645,
  "full_attention_interval": 4, "head_dim": 256, "hidden_act": "silu", "hidden_size": 2048,
  "initializer_range": 0.02, "intermediate_size": 5120, "linear_conv_kernel_dim": 4,
  "linear_key_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
  "linear_value_head_dim": 128, "max_position_embeddings": 262144, "mlp_only_layers": [],
  "model_type": "qwen3_next", "moe_intermediate_size": 512, "norm_topk_prob": true,
  "num_attention_heads": 16, "num_experts": 512, "num_experts_per_tok": 10,
  "num_hidden_layers": 48, "num_key_value_heads": 2, "output_router_logits": false,
  "partial_rotary_factor": 0.25, "rms_norm_eps": 1e-06, "rope_scaling": null,
  "rope_theta": 10000000, "router_aux_loss_coef": 0.001, "shared_expert_intermediate_size": 512,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_cache": true,
  "use_sliding_window": false, "vocab_size": 151936}""")
QWEN35_35B = json.loads("""{
  "architectures": ["Qwen3_5MoeForConditionalGeneration"], "image_token_id": 248056,
  "model_type": "qwen3_5_moe", "tie_word_embeddings": false,
  "text_config": {"attention_bias": false, "attention_dropout": 0.0, "attn_output_gate": true,
    "dtype": "bfloat16", "full_attention_interval": 4, "head_dim": 256, "hidden_act": "silu",
    "hidden_size": 2048, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
    "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_value_head_dim": 128,
    "mamba_ssm_dtype": "float32", "max_position_embeddings": 262144, "mlp_only_layers": [],
    "model_type": "qwen3_5_moe_text", "moe_intermediate_size": 512, "mtp_num_hidden_layers": 1,
    "mtp_use_dedicated_embeddings": false, "num_attention_heads": 16, "num_experts": 256,
    "num_experts_per_tok": 8, "num_hidden_layers": 40, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06, "shared_expert_intermediate_size": 512, "use_cache": true,
    "vocab_size": 248320, "rope_parameters": {"mrope_interleaved": true,
      "mrope_section": [11, 11, 10], "partial_rotary_factor": 0.25, "rope_theta": 10000000,
      "rope_type": "default"}},
  "video_token_id": 248057, "vision_config": {"depth": 27}, "vision_end_token_id": 248054,
  "vision_start_token_id": 248053}""")
RELEASED = {
    "kimi-linear-48b-a3b": KIMI_LINEAR,
    "qwen3-next-80b-a3b": QWEN3_NEXT,
    "qwen3.5-35b-a3b": QWEN35_35B,
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_configs_are_the_presets(name):
    assert models.config_from_hf(RELEASED[name]) == models.config(name)


def test_kimi_linear_numbers_layers_from_one():
    mixers = [type(la.mixer).__name__ for la in models.config_from_hf(KIMI_LINEAR).layers]
    assert mixers[2:8] == ["GatedDelta", "MLA", "GatedDelta", "GatedDelta", "GatedDelta", "MLA"]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("kimi-linear-48b-a3b", {"mla_use_nope": False}, "mla_use_nope=False"),
        ("kimi-linear-48b-a3b", {"num_hidden_layers": 28}, "each of layers 1 to 28"),
        ("kimi-linear-48b-a3b", {"layer_types": ["mamba"] * 27}, "linear_attention or full"),
        (
            "kimi-linear-48b-a3b",
            {"linear_attn_config": {"heads": 3}},
            "linear_attn config: heads",
        ),
        ("kimi-linear-48b-a3b", {"num_key_value_heads": 8}, "must equal num_attention_heads=32"),
        # What these files call otherwise than DeepSeek-V3's is named as they call it.
        ("kimi-linear-48b-a3b", {"num_expert_group": 0}, "num_expert_group=0"),
        ("kimi-linear-48b-a3b", {"n_group": 2}, "n_group=2"),
        ("qwen3-next-80b-a3b", {"attention_bias": True}, "attention_bias=True.*only False"),
        ("qwen3-next-80b-a3b", {"layer_types": ["full_attention"]}, "all 48 layers"),
        ("qwen3-next-80b-a3b", {"use_sliding_window": True}, "use_sliding_window=True"),
        ("qwen3.5-35b-a3b", {"audio_config": {}}, "audio_config"),
    ],
)
def test_what_is_not_understood_is_named(name, change, message):
    with pytest.raises(ValueError, match=message):
        models.config_from_hf({**RELEASED[name], **change})


def test_qwen35s_experts_are_fused_or_one_by_one():
    """Released files fuse them; transformers 5 saves one by one."""
    cfg = models.config("qwen3.5-35b-a3b")
    held = models.storage(cfg, QWEN35_35B)
    experts = "model.language_model.layers.3.mlp.experts."
    fused = expand(cfg, held.table, {experts + "gate_up_proj", experts + "down_proj"})
    assert fused[experts + "gate_up_proj"].shape == (256, 2 * 512, 2048)
    assert fused[experts + "down_proj"].shape == (256, 2048, 512)
    assert experts + "0.gate_proj.weight" not in fused
    parts = ("gate_proj", "up_proj", "down_proj")
    single = expand(
        cfg, held.table, {f"{experts}{e}.{part}.weight" for e in range(256) for part in parts}
    )
    assert single[experts + "255.down_proj.weight"].shape == (2048, 512)
    assert experts + "down_proj" not in single
