"""Saving: exactly what was read, or what transformers reads, and never a loss of what was there."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import zoo
from tests.hf.cases import GOLDEN
from tests.hf.test_load import edit, rewrite
from zoo import models
from zoo.hf.load import flatten, load, unflatten
from zoo.hf.safetensors import File
from zoo.hf.save import save_hf

FOLDER = Path(__file__).parent.parent / "golden"


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def equal(a: dict, b: dict) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("dtype", [None, jnp.float32])
@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_every_file_comes_back_byte_for_byte(name, dtype, tmp_path):
    ckpt = load(FOLDER / name, dtype=dtype)
    save_hf(tmp_path / "again", ckpt.config, ckpt.params, source=ckpt.source)
    assert contents(tmp_path / "again") == contents(FOLDER / name)


@pytest.mark.parametrize("name", ["llama", "deepseek_v3_yarn"])
def test_from_a_mesh(name, tmp_path):
    ckpt = load(FOLDER / name, mesh=zoo.make_mesh("fsdp=2,data=-1"), rules={"mlp": "fsdp"})
    save_hf(tmp_path / "again", ckpt.config, ckpt.params, source=ckpt.source)
    assert contents(tmp_path / "again") == contents(FOLDER / name)


def test_over_itself(tmp_path):
    folder = Path(shutil.copytree(FOLDER / "qwen3_moe", tmp_path / "model"))
    ckpt = load(folder)
    for _ in range(2):
        save_hf(folder, ckpt.config, ckpt.params, source=ckpt.source)
    assert contents(folder) == contents(FOLDER / "qwen3_moe")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("there", [True, False])
def test_through_links(there, tmp_path):
    """Files are links to blobs, as the Hub's cache has them; a destination stays a link."""
    snapshot, blobs = tmp_path / "snapshots" / "ünd so", tmp_path / "blobs"
    shutil.copytree(FOLDER / "llama", blobs)
    snapshot.mkdir(parents=True)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(Path("../../blobs") / blob.name)
    out, target = tmp_path / "out", tmp_path / "disk" / "target"
    out.symlink_to(target)
    target.parent.mkdir()
    if there:
        target.mkdir()
    ckpt = load(f"{snapshot}/")
    save_hf(out, ckpt.config, ckpt.params, source=ckpt.source)
    assert out.is_symlink()
    assert contents(target) == contents(snapshot) == contents(FOLDER / "llama")


def test_extras_and_foreign_metadata_come_back(tmp_path):
    folder = Path(shutil.copytree(FOLDER / "deepseek_v3_full_q", tmp_path / "model"))
    other = np.arange(16).reshape(4, 4).astype(ml_dtypes.float8_e4m3fn)
    extra = "model.layers.2.self_attn.rotary_emb.inv_freq"
    rewrite(folder, lambda t: t.update({extra: other}))
    edit(folder, auto_map={"AutoConfig": "a.B"})
    (folder / "modeling_custom.py").write_text("# not run")
    ckpt = load(folder)
    save_hf(tmp_path / "again", ckpt.config, ckpt.params, source=ckpt.source)
    assert contents(tmp_path / "again") == contents(folder)


def test_named_templates_come_back_and_follow_the_tokenizer(tmp_path):
    folder = Path(shutil.copytree(FOLDER / "llama", tmp_path / "model"))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}\r\n")
    ckpt, again = load(folder), tmp_path / "again"
    for _ in range(2):  # also over an older one
        save_hf(again, ckpt.config, ckpt.params, source=ckpt.source)
    assert contents(again) == contents(folder)
    save_hf(again, ckpt.config, ckpt.params, source=ckpt.source, tokenizer=FOLDER / "qwen3_moe")
    assert not (again / "additional_chat_templates").exists()
    save_hf(again, ckpt.config, ckpt.params, tokenizer=folder)
    assert load(again).chat.templates.keys() == {"default", "rag"}


def test_biases_that_a_folder_leaves_out_are_zeros(tmp_path):
    folder, ours = Path(shutil.copytree(FOLDER / "axk1", tmp_path / "model")), "moe/bias/b"
    bias = "mlp.gate.e_score_correction_bias"
    rewrite(folder, lambda t: [t.pop(name) for name in list(t) if name.endswith(bias)])
    ckpt, again = load(folder), tmp_path / "again"
    (path,) = (p for p in flatten(ckpt.params["params"]) if p.endswith(ours))
    flat = flatten(ckpt.params["params"])
    assert flat[path].dtype == np.float32
    assert not np.any(flat[path])
    save_hf(again, ckpt.config, ckpt.params, source=ckpt.source)
    assert contents(again) == contents(folder)
    moved = flat[path].at[0, 1].set(0.5)
    save_hf(again, ckpt.config, unflatten({**flat, path: moved}), source=ckpt.source)
    np.testing.assert_array_equal(flatten(load(again).params["params"])[path], moved)


def test_a_header_of_another_writer_comes_back(tmp_path):
    """Tensors in another order, odd spacing and foreign metadata are kept as they are."""
    folder = Path(shutil.copytree(FOLDER / "llama", tmp_path / "model"))
    file = File(folder / "model.safetensors")
    entries, body, start = {"__metadata__": {"format": "pt", "by": "someone"}}, b"", 0
    for name in sorted(file.specs, reverse=True):
        spec, data = file.specs[name], np.ascontiguousarray(file[name]).tobytes()
        offsets = [start, start + len(data)]
        entries[name] = {"shape": list(spec.shape), "data_offsets": offsets, "dtype": "F32"}
        start, body = start + len(data), body + data
    text = json.dumps(entries, indent=1).encode()
    file.path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    ckpt = load(folder)
    save_hf(tmp_path / "again", ckpt.config, ckpt.params, source=ckpt.source)
    assert contents(tmp_path / "again") == contents(folder)


def test_repeated_tied_head_follows_the_embedding(tmp_path):
    folder = Path(shutil.copytree(FOLDER / "llama_tied_llama3_bias", tmp_path / "model"))
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    ckpt = load(folder)
    params = jax.tree.map(lambda x: x * 2, ckpt.params)
    save_hf(tmp_path / "again", ckpt.config, params, source=ckpt.source)
    again = File(tmp_path / "again" / "model.safetensors")
    np.testing.assert_array_equal(again["lm_head.weight"], again["model.embed_tokens.weight"])
    equal(load(tmp_path / "again").params, params)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_fresh(name, tmp_path):
    ckpt = load(FOLDER / name)
    save_hf(tmp_path / "fresh", ckpt.config, ckpt.params, generation={"eos_token_id": [1, 2]})
    again = load(tmp_path / "fresh")
    assert again.config == ckpt.config
    equal(again.params, ckpt.params)
    hf = json.loads((tmp_path / "fresh" / "config.json").read_text())
    assert hf["architectures"] == [models.family(ckpt.config.family).architecture]
    assert hf["torch_dtype"] == json.loads(ckpt.source.config_bytes)["dtype"]
    assert hf["eos_token_id"] == [1, 2]
    assert hf["bos_token_id"] is None
    assert File(tmp_path / "fresh" / "model.safetensors").metadata == {"format": "pt"}


def test_fresh_in_shards(tmp_path):
    ckpt = load(FOLDER / "qwen3_moe")
    save_hf(tmp_path / "fresh", ckpt.config, ckpt.params, max_shard_bytes=30_000)
    names = sorted(p.name for p in (tmp_path / "fresh").glob("*.safetensors"))
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    assert len(names) > 2
    assert all(p.stat().st_size < 36_000 for p in (tmp_path / "fresh").glob("*.safetensors"))
    equal(load(tmp_path / "fresh").params, ckpt.params)
    index = json.loads((tmp_path / "fresh" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_parameters"] == zoo.hf.layout.count(ckpt.config)


def test_dtype(tmp_path):
    ckpt = load(FOLDER / "deepseek_v3_yarn")
    save_hf(tmp_path / "a", ckpt.config, ckpt.params, source=ckpt.source, dtype=jnp.float16)
    again = load(tmp_path / "a")
    hf = json.loads((tmp_path / "a" / "config.json").read_text())
    assert hf["dtype"] == "float16"
    assert {a.dtype for p, a in flatten(again.params).items() if not p.endswith("bias/b")} == {
        np.dtype(np.float16)
    }
    assert again.source.specs["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == np.float32


def test_a_changed_config_is_merged(tmp_path):
    folder = Path(shutil.copytree(FOLDER / "llama", tmp_path / "model"))
    edit(folder, _name_or_path="somebody/something", pretraining_tp=4)
    ckpt = load(folder)
    longer = dataclasses.replace(ckpt.config, max_length=4096)
    save_hf(tmp_path / "a", longer, ckpt.params, source=ckpt.source)
    before = json.loads(ckpt.source.config_bytes)
    after = json.loads((tmp_path / "a" / "config.json").read_text())
    assert after == {**before, "max_position_embeddings": 4096}
    assert load(tmp_path / "a").config == longer

    scaled = json.loads((tmp_path / "a" / "config.json").read_text())
    scaled |= {"rope_parameters": None, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    config = zoo.config_from_hf(scaled)
    save_hf(tmp_path / "b", config, ckpt.params, source=ckpt.source)
    assert load(tmp_path / "b").config == config
    assert "rope_parameters" not in json.loads((tmp_path / "b" / "config.json").read_text())


def test_a_text_part_beside_others_is_saved_where_it_was(tmp_path):
    """Released Qwen2.5-VL folders have the text part's keys at the top, and names without more."""
    folder = Path(shutil.copytree(FOLDER / "qwen2", tmp_path / "model"))
    rewrite(folder, lambda t: t.update({"visual.merger.w": np.ones((2, 3), ml_dtypes.bfloat16)}))
    kind = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl"}
    edit(folder, **kind, vision_config={"depth": 1}, image_token_id=95)
    ckpt = load(folder)
    assert ckpt.config == load(FOLDER / "qwen2").config
    save_hf(tmp_path / "a", ckpt.config, ckpt.params, source=ckpt.source)
    assert contents(tmp_path / "a") == contents(folder)
    longer = dataclasses.replace(ckpt.config, max_length=4096)
    save_hf(tmp_path / "b", longer, ckpt.params, source=ckpt.source)
    before = json.loads(ckpt.source.config_bytes)
    after = json.loads((tmp_path / "b" / "config.json").read_text())
    assert after == {**before, "max_position_embeddings": 4096}


def test_fewer_layers_than_the_source(tmp_path):
    ckpt = load(FOLDER / "qwen3_window")
    stacks = ckpt.config.stacks[:1]
    config = dataclasses.replace(ckpt.config, stacks=stacks)
    params = {k: v for k, v in ckpt.params["params"].items() if k != "stack_1"}
    save_hf(tmp_path / "a", config, {"params": params}, source=ckpt.source)
    assert load(tmp_path / "a").config == config


def test_tokenizer(tmp_path):
    ckpt = load(FOLDER / "llama")
    names = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    save_hf(tmp_path / "a", ckpt.config, ckpt.params, tokenizer=FOLDER / "qwen3_moe")
    assert names <= contents(tmp_path / "a").keys()
    save_hf(tmp_path / "b", ckpt.config, ckpt.params, tokenizer=FOLDER / "llama" / "tokenizer.json")
    assert load(tmp_path / "b").tokenizer.get_vocab_size() == ckpt.tokenizer.get_vocab_size()
    with pytest.raises(ValueError, match=r"has none of tokenizer.json"):
        save_hf(tmp_path / "c", ckpt.config, ckpt.params, tokenizer=tmp_path)


def test_wrong_parameters(tmp_path):
    ckpt = load(FOLDER / "llama")
    tree = ckpt.params["params"]

    def refuses(params, message):
        with pytest.raises(ValueError, match=message):
            save_hf(tmp_path / "a", ckpt.config, {"params": params})
        assert not list(tmp_path.iterdir())

    refuses({k: v for k, v in tree.items() if k != "final_norm"}, "params lack final_norm/scale")
    refuses({**tree, "adapter": {"w": jnp.ones(3)}}, "params have adapter/w")
    refuses({**tree, "head": {"w": jnp.ones((3, 3))}}, r"head/w has shape \[3, 3\].*\[32, 97\]")
    refuses(jax.tree.map(lambda x: x.astype(jnp.int32), tree), "is int32.*cast it first")


def test_destinations(tmp_path):
    ckpt = load(FOLDER / "llama")
    save = lambda out: save_hf(out, ckpt.config, ckpt.params, source=ckpt.source)  # noqa: E731
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"not empty and no checkpoint"):
        save(tmp_path / "notes")
    with pytest.raises(ValueError, match=r"is a file"):
        save(tmp_path / "notes" / "a.txt")
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty")
    save(tmp_path / "new" / "er" / "still")
    (tmp_path / "empty" / "README.md").write_text("mine")
    (tmp_path / "empty" / "model-00001-of-00002.safetensors").write_text("stale")
    save(tmp_path / "empty")
    assert contents(tmp_path / "empty") == {**contents(FOLDER / "llama"), "README.md": b"mine"}
    (tmp_path / "empty" / "runs").mkdir()
    with pytest.raises(ValueError, match=r"holds folders \(runs\)"):
        save(tmp_path / "empty")


def test_a_disk_that_is_too_small(tmp_path, monkeypatch):
    ckpt = load(FOLDER / "llama")
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(OSError, match=r"^/.* needs .* bytes and .* has 1000 free; nothing"):
        save_hf(tmp_path / "a", ckpt.config, ckpt.params)
    assert not list(tmp_path.iterdir())


FULL = """
import resource, signal, sys
import numpy as np
from zoo.hf.load import load
from zoo.hf.save import save_hf

source, out = sys.argv[1:]
ckpt = load(source)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
try:
    save_hf(out, ckpt.config, ckpt.params, source=ckpt.source)
except OSError as e:
    print(e)
    sys.exit(7)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_a_disk_that_fills_up_loses_nothing(tmp_path):
    """The system itself refuses to write past 40 kB, in the middle of the weights."""
    ckpt = load(FOLDER / "qwen3_moe")
    save_hf(tmp_path / "a", ckpt.config, ckpt.params, source=ckpt.source)
    before = contents(tmp_path / "a")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(FOLDER / "llama"), str(tmp_path / "a")],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 7, done.stderr
    assert "the disk is full" in done.stdout
    assert contents(tmp_path / "a") == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_verify(tmp_path):
    """A folder with other parts than text, which transformers has a class of its own for."""
    folder = Path(shutil.copytree(FOLDER / "mistral4_whole", tmp_path / "model"))
    there = contents(folder)
    (folder / "consolidated.safetensors").write_bytes(b"weights as their authors read them")
    report = zoo.verify(folder, length=8, new_tokens=4)
    assert report.exact
    assert report.left_out == ("consolidated.safetensors",)
    assert report.files == len(there)
    assert report.bytes == sum(map(len, there.values()))
    assert report.logits_error is None or report.logits_error < 1e-5
    assert report.greedy_equal in (None, True)
