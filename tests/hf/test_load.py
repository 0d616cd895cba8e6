"""Loading: every part of a folder arrives, or an error says which does not, before work starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import zoo
from tests.hf.cases import GOLDEN
from zoo import models
from zoo.hf.hub import resolve
from zoo.hf.layout import shapes
from zoo.hf.load import flatten, load
from zoo.hf.safetensors import File, Spec, layout, write
from zoo.hf.source import open_source
from zoo.hf.table import expand

FOLDER = Path(__file__).parent.parent / "golden"
SHARDED = "deepseek_v3_yarn"


@pytest.fixture(params=sorted(GOLDEN))
def folder(request) -> Path:
    return FOLDER / request.param


@pytest.fixture
def copy(tmp_path):
    """A copy of a golden folder, to be broken."""

    def make(name: str) -> Path:
        return Path(shutil.copytree(FOLDER / name, tmp_path / name))

    return make


def rewrite(folder: Path, change) -> None:
    """Applies `change` to the dict of tensors of a folder with one file."""
    file = File(folder / "model.safetensors")
    tensors = {name: np.array(file[name]) for name in file.specs}
    change(tensors)
    specs = layout(Spec(n, a.dtype, a.shape) for n, a in tensors.items())
    write(file.path, specs, [tensors[s.name] for s in specs], file.metadata)


def edit(folder: Path, **change) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def test_parameters(folder):
    ckpt = load(folder)
    flat = flatten(ckpt.params["params"])
    assert {path: a.shape for path, a in flat.items()} == shapes(ckpt.config)
    specs, table = ckpt.source.specs, models.storage(ckpt.config, ckpt.source.config).table
    for tensor in expand(ckpt.config, table, specs).values():
        for path in (part.path for part in tensor.parts):
            stays = (
                np.dtype(np.float32) if path.endswith("moe/bias/b") else specs[tensor.name].dtype
            )
            assert flat[path].dtype == stays, path
    assert ckpt.tokenizer.get_vocab_size() == 92
    assert bool(ckpt.source.extras) == (models.wrapper(ckpt.source.config) is not None)


def test_values_by_hand():
    """The transposes and splits, written out for one layer, independent of the table."""
    ckpt = load(FOLDER / SHARDED, dtype=jnp.float32)
    source, flat = ckpt.source, flatten(ckpt.params["params"])
    disk = lambda name: np.asarray(source[f"model.layers.2.{name}"], np.float32)  # noqa: E731
    ours = lambda path: np.asarray(flat[f"stack_1/layer_0/{path}"])[1]  # noqa: E731
    kv_b = disk("self_attn.kv_b_proj.weight").reshape(4, 12 + 10, 16)
    np.testing.assert_array_equal(ours("attn/k_up/w"), kv_b[:, :12].transpose(2, 0, 1))
    np.testing.assert_array_equal(ours("attn/v_up/w"), kv_b[:, 12:].transpose(2, 0, 1))
    kv_a = disk("self_attn.kv_a_proj_with_mqa.weight")
    np.testing.assert_array_equal(ours("attn/kv_down/w"), kv_a[:16].T)
    np.testing.assert_array_equal(ours("attn/k_rope/w"), kv_a[16:].T)
    o = disk("self_attn.o_proj.weight")
    np.testing.assert_array_equal(ours("attn/o/w"), o.T.reshape(4, 10, 32))
    np.testing.assert_array_equal(ours("moe/up/w")[5], disk("mlp.experts.5.up_proj.weight").T)


def test_no_copy_on_the_way_to_the_device():
    """Large parameters are handed over, not copied: peak memory depends on it."""
    buffer = zoo.hf.strided.empty((1 << 20,), np.float32)
    buffer.fill(1.0)
    assert jax.device_put(buffer).unsafe_buffer_pointer() == buffer.ctypes.data


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_dtype(folder, dtype):
    exact, cast = (flatten(load(folder, dtype=t).params["params"]) for t in (None, dtype))
    for path, array in cast.items():
        wanted = jnp.float32 if path.endswith("moe/bias/b") else dtype
        assert array.dtype == wanted
        np.testing.assert_array_equal(array, np.asarray(exact[path]).astype(wanted))


def test_dtypes_that_parameters_cannot_have(folder):
    with pytest.raises(ValueError, match=r"dtype=int8 is not one of bfloat16, float16, float32"):
        load(folder, dtype="int8")
    assert (
        flatten(load(folder, dtype="bfloat16").params)["params/final_norm/scale"].dtype
        == "bfloat16"
    )


def test_mesh(folder):
    mesh = zoo.make_mesh("data=2,fsdp=2,tensor=2")
    rules = {"mlp": "fsdp", "heads": "tensor"}
    plain, sharded = load(folder), load(folder, mesh=mesh, rules=rules)
    kinds = set()
    for path, array in flatten(sharded.params["params"]).items():
        np.testing.assert_array_equal(array, flatten(plain.params["params"])[path])
        kinds.add(array.sharding.is_fully_replicated)
        assert len(array.sharding.device_set) == 8
    assert kinds == {True, False}


def test_missing_shard(copy):
    folder = copy(SHARDED)
    gone = sorted(folder.glob("model-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ValueError, match=rf"lacks 1 of .* shards: {gone.name}"):
        load(folder)


def test_truncated_shard(copy):
    folder = copy(SHARDED)
    path = sorted(folder.glob("model-*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{path.name} is truncated: tensor model\.layers"):
        load(folder)


def test_index_and_shards_disagree(copy):
    folder = copy(SHARDED)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = next(iter(index["weight_map"]))
    path.write_text(
        json.dumps({"weight_map": {**index["weight_map"], "ghost": index["weight_map"][name]}})
    )
    with pytest.raises(ValueError, match=r"no shard holds: ghost"):
        load(folder)
    del index["weight_map"][name]
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"holds {name}, which"):
        load(folder)
    path.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(ValueError, match=r"outside of its folder"):
        load(folder)


def test_tensor_too_few(copy):
    folder = copy("llama")
    rewrite(folder, lambda t: t.pop("model.norm.weight"))
    with pytest.raises(ValueError, match=r"lacks model\.norm\.weight"):
        load(folder)


def test_tensor_too_many(copy):
    folder = copy("llama")
    rewrite(folder, lambda t: t.update(extra=np.zeros(3, np.float32)))
    with pytest.raises(ValueError, match=r"does not know: extra"):
        load(folder)


def test_wrong_shape(copy):
    folder = copy("llama")
    edit(folder, intermediate_size=48)
    with pytest.raises(ValueError, match=r"gate_proj\.weight has shape \[44, 32\].*\[48, 32\]"):
        load(folder)


@pytest.mark.parametrize("dtype", [np.int32, ml_dtypes.float8_e4m3fn, np.float64])
def test_wrong_dtype(copy, dtype):
    folder = copy("llama")
    rewrite(folder, lambda t: t.update({k: v.astype(dtype) for k, v in t.items()}))
    with pytest.raises(ValueError, match=r"must be BF16, F16 or F32"):
        load(folder)


def test_unknown_key_and_family(copy):
    folder = copy("llama")
    edit(folder, attn_logit_softcapping=50.0)
    with pytest.raises(ValueError, match=r"attn_logit_softcapping=50.0"):
        load(folder)
    edit(folder, model_type="gpt2")
    with pytest.raises(ValueError, match=r"model_type='gpt2' is not a family known here"):
        load(folder)


def test_no_weights(copy):
    folder = copy("llama")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"has pytorch_model\.bin: convert them to safetensors"):
        load(folder)
    (folder / "pytorch_model.bin").rename(folder / "consolidated.safetensors")
    with pytest.raises(ValueError, match=r"has consolidated\.safetensors: fetch the index"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json"):
        load(folder)


def test_broken_tokenizer(copy):
    folder = copy("llama")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
        load(folder)
    (folder / "tokenizer.json").unlink()
    assert load(folder).tokenizer is None


def test_mixed_dtypes_are_joined_exactly(copy):
    folder = copy("llama")
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(folder, lambda t: t.update({name: t[name].astype(ml_dtypes.bfloat16)}))
    up = flatten(load(folder).params["params"])["stack_0/layer_0/mlp/up/w"]
    assert up.dtype == jnp.float32
    np.testing.assert_array_equal(up[1].T, open_source(folder)[name].astype(np.float32))


def test_extras_are_named_not_read(copy):
    folder = copy("deepseek_v3_full_q")
    known, unknown = (f"model.layers.{i}.self_attn.{{}}.inv_freq" for i in (1, 2))
    known, unknown = known.format("rotary_emb"), unknown.format("rotary")
    other = np.ones((4, 4), ml_dtypes.float8_e4m3fn)
    rewrite(folder, lambda t: t.update({known: other}))
    assert load(folder).source.extras == (known,)
    rewrite(folder, lambda t: t.update({unknown: other}))
    with pytest.raises(ValueError, match=r"does not know: model\.layers\.2\.self_attn\.rotary\."):
        load(folder)


def test_repeated_tied_head(copy):
    folder = copy("llama_tied_llama3_bias")
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    assert load(folder).source.extras == ("lm_head.weight",)
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1}))
    with pytest.raises(
        ValueError, match=r"tie_word_embeddings is true, but lm_head.weight differs"
    ):
        load(folder)


@pytest.mark.parametrize("name", ["no-such-folder", "no/such/folder", "../nowhere/at"])
def test_no_folder(name):
    with pytest.raises(ValueError, match=r"neither a folder nor a repo id"):
        load(name)


def test_a_repo_is_its_top_folder_and_its_templates(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub", reason="needs the extra hf")
    names = ["config.json", "onnx/config.json", "additional_chat_templates/rag.jinja"]
    fetched = set()

    def download(repo, revision=None, **patterns):
        assert revision in (None, tmp_path.name)
        fetched.update(hub.utils.filter_repo_objects(names, **patterns))
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert resolve("someone/model") == tmp_path
    assert fetched == {names[0], names[2]}


def test_repo_offline():
    pytest.importorskip("huggingface_hub", reason="needs the extra hf")
    with pytest.raises(ValueError, match=r"no folder 'nobody/nothing'"):
        load("nobody/nothing")
