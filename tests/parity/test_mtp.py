"""Layers of multi-token prediction: read, used and written as transformers' `MtpModel` does."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.hf.load import load
from zoo.hf.safetensors import File, Spec, layout, write
from zoo.hf.save import save_hf

reference = pytest.importorskip(
    "tests.parity.reference",
    reason="live parity needs torch and transformers; the golden files stand in without them",
)
FULL, LOCAL = "full_attention", "sliding_attention"


class Layout(NamedTuple):
    """How released files hold the layer: names of its own parts, what its block's begin with, and
    the keys that say that it is there. `{n}` is its number when layers are counted on."""

    parts: dict[str, str]
    block: str
    keys: dict
    copies: tuple[str, ...] = ()


COUNTED = {"num_nextn_predict_layers": 1}
DEEPSEEK = Layout(
    {
        "enorm": "model.layers.{n}.enorm",
        "hnorm": "model.layers.{n}.hnorm",
        "eh_proj": "model.layers.{n}.eh_proj",
        "post_norm": "model.layers.{n}.shared_head.norm",
    },
    "model.layers.{n}.",
    COUNTED,
    ("model.layers.{n}.embed_tokens.weight", "model.layers.{n}.shared_head.head.weight"),
)
QWEN = Layout(
    {
        "enorm": "mtp.pre_fc_norm_embedding",
        "hnorm": "mtp.pre_fc_norm_hidden",
        "eh_proj": "mtp.fc",
        "post_norm": "mtp.norm",
    },
    "mtp.layers.0.",
    {"mtp_num_hidden_layers": 1},
)
HY = Layout(
    {**DEEPSEEK.parts, "post_norm": "model.layers.{n}.final_layernorm"},
    DEEPSEEK.block,
    COUNTED,
)
ERNIE = Layout(  # without a norm behind
    {
        "enorm": "model.mtp_emb_norm.0",
        "hnorm": "model.mtp_hidden_norm.0",
        "eh_proj": "model.mtp_linear_proj.0",
    },
    "model.mtp_block.0.",
    COUNTED,
)
EXAONE = COUNTED | {"mtp_layer_types": [FULL], "mtp_sliding_windows": [0]}
HYBRID = dict(num_hidden_layers=3, layer_types=["linear_attention", FULL, FULL])
# The layer, a longer model's last, and what transformers' config of it needs beside.
CASES = {
    "deepseek_v3_yarn": (DEEPSEEK, dict(num_hidden_layers=4), {}),
    "glm4_moe": (DEEPSEEK, dict(num_hidden_layers=3), {}),
    "qwen3_5": (QWEN, HYBRID, {}),
    "qwen3_next": (QWEN._replace(keys={}), HYBRID, {}),
    "mellum": (
        QWEN._replace(keys=COUNTED),
        dict(num_hidden_layers=3, layer_types=[FULL, LOCAL, LOCAL]),
        dict(mtp_layer_types=[LOCAL], mtp_mlp_layer_types=["sparse"]),
    ),
    "exaone_moe": (
        QWEN._replace(keys=EXAONE),
        dict(
            num_hidden_layers=4,
            layer_types=[LOCAL, FULL, LOCAL, FULL],
            mlp_layer_types=["dense", "sparse", "sparse", "dense"],
        ),
        dict(mtp_mlp_layer_types=["dense"]),
    ),
    "hy_v3": (HY, dict(num_hidden_layers=3), dict(mtp_mlp_layer_types=["sparse"])),
    "ernie4_5_moe": (ERNIE, dict(num_hidden_layers=4), dict(chain_hidden_post_norm=True)),
}
NAME = "deepseek_v3_yarn"


@pytest.fixture(scope="module", params=CASES)
def made(request, tmp_path_factory):
    """(main model, its MtpModel, a folder that holds both as released ones do, names of copies).

    The block is the last layer of a longer model, so that transformers itself says how it is kept.
    """
    import torch
    from transformers.modeling_layers import MtpModel

    layout, changes, further = CASES[request.param]
    main = reference.build(request.param)
    longer = reference.build(request.param, seed=1, **changes)
    n = main.config.num_hidden_layers
    assert longer.config.num_hidden_layers == n + 1
    plain, main.config = main.config, copy.deepcopy(main.config)
    for key, value in {"num_mtp_layers": 1, "mtp_layer_types": [FULL], **further}.items():
        setattr(main.config, key, value)
    predictor = MtpModel(main, 1).float().eval()
    main.config = plain
    if "post_norm" not in layout.parts:
        predictor.shared_post_norm = main.model.norm
    generator, extra = torch.Generator().manual_seed(2), {}
    with torch.no_grad():
        predictor.layers[0].mtp_block.load_state_dict(longer.model.layers[n].state_dict())
        for theirs, disk in layout.parts.items():
            weight = getattr(predictor.layers[0], theirs).weight
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2 + (weight.ndim == 1))
            extra[disk.format(n=n) + ".weight"] = weight.numpy().copy()
    copies = [name.format(n=n) for name in layout.copies]
    originals = main.model.embed_tokens.weight, main.lm_head.weight
    extra |= {name: x.detach().numpy() for name, x in zip(copies, originals, strict=False)}
    folder = reference.save(main, tmp_path_factory.mktemp("mtp"))
    other = File(reference.save(longer, tmp_path_factory.mktemp("longer")) / "model.safetensors")
    last = f"model.layers.{n}."
    block = layout.block.format(n=n)
    behind = {block + x.removeprefix(last): other[x] for x in other.specs if x.startswith(last)}
    held = File(folder / "model.safetensors")
    tensors = {n: np.array(held[n]) for n in held.specs} | behind | extra
    _write(folder, tensors, layout.keys)
    return main, predictor, folder, copies


def _write(folder: Path, tensors: dict[str, np.ndarray], keys: dict) -> None:
    specs = layout(Spec(name, x.dtype, x.shape) for name, x in tensors.items())
    write(folder / "model.safetensors", specs, (tensors[s.name] for s in specs), {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys, indent=2))


def test_draft_is_what_transformers_predicts(made):
    import torch

    main, predictor, folder, _ = made
    ckpt = load(folder)
    ids = reference.tokens(main, 1, 20)
    tokens, following = ids[:, :-1], ids[:, 1:]
    with torch.no_grad():
        hidden = main.model(torch.tensor(tokens)).last_hidden_state
        wanted = predictor.forward_layer(
            0, hidden, torch.arange(1, 20)[None], None, input_ids=torch.tensor(following)
        )
        wanted = main.lm_head(wanted).numpy()
    model = zoo.Decoder(ckpt.config)

    @jax.jit
    def ours(params, hidden, following):
        drafted = model.apply(params, 0, hidden, following, method="draft").hidden
        return model.apply(params, drafted, method="logits")

    found = np.asarray(ours(ckpt.params, jnp.asarray(hidden.numpy()), jnp.asarray(following)))
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_round_trip_with_layers_of_prediction(made, tmp_path):
    _, _, folder, copies = made
    ckpt = load(folder)
    assert len(ckpt.config.mtp) == 1
    assert sorted(ckpt.source.extras) == sorted(copies)
    save_hf(tmp_path / "same", ckpt.config, ckpt.params, source=ckpt.source)
    for path in folder.iterdir():
        assert (tmp_path / "same" / path.name).read_bytes() == path.read_bytes(), path.name
    changed = jax.tree.map(lambda x: np.asarray(x) + 1, ckpt.params)
    save_hf(tmp_path / "changed", ckpt.config, changed, source=ckpt.source)
    again = File(tmp_path / "changed" / "model.safetensors")
    for name in copies[:1]:
        np.testing.assert_array_equal(again[name], again["model.embed_tokens.weight"])
        np.testing.assert_array_equal(again[name], changed["params"]["embed"]["table"])


def test_a_folder_without_them_loads_without_and_goes_back_as_it_was(tmp_path):
    """transformers drops the layers when it saves, and leaves their number in the config."""
    folder = reference.save(reference.build(NAME), tmp_path / "first")
    config = json.loads((folder / "config.json").read_text())
    text = json.dumps(config | {"num_nextn_predict_layers": 1})
    (folder / "config.json").write_text(text)
    ckpt = load(folder)
    assert ckpt.config.mtp == ()
    save_hf(tmp_path / "again", ckpt.config, ckpt.params, source=ckpt.source)
    assert (tmp_path / "again" / "config.json").read_text() == text
