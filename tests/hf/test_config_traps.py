"""Configs of dense families that have traps, most in how positions are written."""

from __future__ import annotations

import pytest

from zoo import models
from zoo.config import Rope, Temperature

# As released, with keys of the authors' own code.
HUNYUAN_18B = {
    "architectures": ["HunYuanDenseV1ForCausalLM"], "model_type": "hunyuan_v1_dense",
    "attention_head_dim": 128, "head_dim": 128, "hidden_size": 2048, "intermediate_size": 6144,
    "max_position_embeddings": 262144, "num_attention_heads": 16, "num_hidden_layers": 32,
    "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "rope_scaling": {
        "alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0,
        "mscale_all_dim": 1.0, "type": "dynamic",
    },
    "tie_word_embeddings": True, "use_cla": False, "use_qk_norm": True, "vocab_size": 120818,
}  # fmt: skip
DEVSTRAL_2 = {
    "architectures": ["Ministral3ForCausalLM"], "model_type": "ministral3", "head_dim": 128,
    "hidden_size": 12288, "intermediate_size": 28672, "max_position_embeddings": 262144,
    "num_attention_heads": 96, "num_hidden_layers": 88, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5, "sliding_window": None, "tie_word_embeddings": False,
    "rope_parameters": {
        "beta_fast": 4.0, "beta_slow": 1.0, "factor": 64.0, "mscale": 1.0, "mscale_all_dim": 0.0,
        "original_max_position_embeddings": 4096, "llama_4_scaling_beta": 0.0,
        "rope_theta": 1e6, "rope_type": "yarn", "type": "yarn",
    },
    "vocab_size": 131072,
}  # fmt: skip

SMALL_31 = {
    "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3",
    "image_token_index": 10, "multimodal_projector_bias": False, "projector_hidden_act": "gelu",
    "spatial_merge_size": 2, "vision_feature_layer": -1, "vision_config": {"model_type": "pixtral"},
    "text_config": {
        "attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
        "intermediate_size": 32768, "max_position_embeddings": 131072, "model_type": "mistral",
        "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5, "rope_theta": 1e9, "sliding_window": None, "vocab_size": 131072,
    },
}  # fmt: skip


def test_mistral3_holds_either_of_two_families():
    assert models.config_from_hf(SMALL_31) == models.config("mistral-small-3.1-24b")
    inner = {key: value for key, value in DEVSTRAL_2.items() if key != "architectures"}
    cfg = models.config_from_hf({**SMALL_31, "text_config": inner})
    assert cfg == models.config("devstral-2-123b")


def test_alpha_stretches_hunyuans_theta():
    """1e4 * 1000**(128 / 126) = 11 158 840; nothing else in the dict has an effect."""
    cfg = models.config_from_hf(HUNYUAN_18B)
    assert cfg == models.config("hunyuan-1.8b")
    assert cfg.layers[0].mixer.rope.theta == pytest.approx(11_158_840, rel=1e-4)


def test_devstral_2_as_released():
    assert models.config_from_hf(DEVSTRAL_2) == models.config("devstral-2-123b")


def test_ministral3_without_yarn_keeps_its_temperature():
    rope = {"llama_4_scaling_beta": 0.2, "original_max_position_embeddings": 64, "rope_theta": 5e5}
    cfg = models.config_from_hf({**DEVSTRAL_2, "rope_parameters": rope})
    mixer = cfg.layers[0].mixer
    assert (mixer.rope, mixer.temperature) == (Rope(128, 5e5), Temperature(0.2, 64.0))
    assert models.config_from_hf(models.config_to_hf(cfg)) == cfg


def test_granite_swa_has_a_theta_per_layer():
    hf = {"model_type": "granite_swa", "num_hidden_layers": 5}
    thetas = [0, 1e4, 1e4, 1e4, 5e5]
    cfg = models.config_from_hf({**hf, "layer_rope_theta": thetas})
    ropes = [layer.mixer.rope for layer in cfg.layers]
    assert [0 if rope is None else rope.theta for rope in ropes] == thetas
    assert [layer.mixer.window for layer in cfg.layers] == [None, 128, 128, 128, None]
    assert models.config_from_hf(models.config_to_hf(cfg)) == cfg
    plain = models.config_from_hf(hf)
    assert {layer.mixer.rope for layer in plain.layers} == {Rope(128, 1e4)}


def test_layers_of_smollm3_without_positions_have_the_window():
    hf = {"model_type": "smollm3", "num_hidden_layers": 5, "no_rope_layer_interval": 2}
    plain = models.config_from_hf(hf)
    cfg = models.config_from_hf({**hf, "use_sliding_window": True, "sliding_window": 64})
    for found, window in ((plain, None), (cfg, 64)):
        kinds = [(la.mixer.rope, la.mixer.window) for la in found.layers]
        turned, fixed = (Rope(128, 2e6), None), (None, window)
        assert kinds == [turned, fixed, turned, fixed, turned]
    assert models.config_from_hf(models.config_to_hf(cfg)) == cfg


@pytest.mark.parametrize(
    ("hf", "message"),
    [
        ({**HUNYUAN_18B, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({**HUNYUAN_18B, "use_cla": True}, "use_cla=True.*only False"),
        ({**HUNYUAN_18B, "use_qk_norm": False}, "use_qk_norm=False.*only True"),
        ({**DEVSTRAL_2, "rope_parameters": {"rope_theta": 1e6}}, "llama_4_scaling_beta"),
        (
            {"model_type": "granite_swa", "num_hidden_layers": 5, "layer_rope_theta": [1e4]},
            "all 5 layers",
        ),
    ],
)
def test_what_is_not_understood_is_named(hf, message):
    with pytest.raises(ValueError, match=message):
        models.config_from_hf(hf)
