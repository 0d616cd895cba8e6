"""Layers of multi-token prediction: read, used and written as transformers' `MtpModel` does."""

from __future__ import annotations

import json
from pathlib import Path

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
NAME = "deepseek_v3_yarn"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(main model, its MtpModel, a folder as DeepSeek-V3's: the layer behind the last, copies)."""
    import torch
    from transformers.modeling_layers import MtpModel

    main, longer = reference.build(NAME), reference.build(NAME, seed=1, num_hidden_layers=4)
    layers = main.config.num_hidden_layers
    main.config.num_mtp_layers = 1
    predictor = MtpModel(main, 1).float().eval()
    generator = torch.Generator().manual_seed(2)
    block = longer.model.layers[layers]
    extra = {}
    with torch.no_grad():
        predictor.layers[0].mtp_block.load_state_dict(block.state_dict())
        for ours, theirs in (
            ("enorm", "enorm"), ("hnorm", "hnorm"), ("eh_proj", "eh_proj"),
            ("shared_head.norm", "post_norm"),
        ):  # fmt: skip
            weight = getattr(predictor.layers[0], theirs).weight
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2 + (weight.ndim == 1))
            extra[f"model.layers.{layers}.{ours}.weight"] = weight.numpy().copy()
    extra[f"model.layers.{layers}.embed_tokens.weight"] = main.model.embed_tokens.weight
    extra[f"model.layers.{layers}.shared_head.head.weight"] = main.lm_head.weight
    extra = {name: np.asarray(getattr(x, "detach", lambda x=x: x)()) for name, x in extra.items()}
    folder = reference.save(main, tmp_path_factory.mktemp("mtp"))
    other = File(reference.save(longer, tmp_path_factory.mktemp("longer")) / "model.safetensors")
    behind = {n: other[n] for n in other.specs if n.startswith(f"model.layers.{layers}.")}
    held = File(folder / "model.safetensors")
    tensors = {n: np.array(held[n]) for n in held.specs} | behind | extra
    _write(folder, tensors)
    return main, predictor, folder


def _write(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    specs = layout(Spec(name, x.dtype, x.shape) for name, x in tensors.items())
    write(folder / "model.safetensors", specs, (tensors[s.name] for s in specs), {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config.pop("num_mtp_layers", None)
    text = json.dumps(config | {"num_nextn_predict_layers": 1}, indent=2)
    (folder / "config.json").write_text(text)


def test_draft_is_what_transformers_predicts(made):
    import torch

    main, predictor, folder = made
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
    def ours(params, tokens, following):
        hidden = model.apply(params, tokens, method="hidden").hidden
        drafted = model.apply(params, 0, hidden, following, method="draft").hidden
        return model.apply(params, drafted, method="logits")

    found = np.asarray(ours(ckpt.params, jnp.asarray(tokens), jnp.asarray(following)))
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_round_trip_with_layers_of_prediction(made, tmp_path):
    _, _, folder = made
    ckpt = load(folder)
    assert len(ckpt.config.mtp) == 1
    assert len(ckpt.source.extras) == 2  # the copies of embeddings and head
    save_hf(tmp_path / "same", ckpt.config, ckpt.params, source=ckpt.source)
    for path in folder.iterdir():
        assert (tmp_path / "same" / path.name).read_bytes() == path.read_bytes(), path.name
    changed = jax.tree.map(lambda x: x + 1, ckpt.params)
    save_hf(tmp_path / "changed", ckpt.config, changed, source=ckpt.source)
    again = File(tmp_path / "changed" / "model.safetensors")
    copy = again[f"model.layers.{len(ckpt.config.layers)}.embed_tokens.weight"]
    np.testing.assert_array_equal(copy, again["model.embed_tokens.weight"])
    np.testing.assert_array_equal(copy, changed["params"]["embed"]["table"])


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
