"""`zoo.checkpoint`: what is kept, what is refused, and what a full disk leaves behind."""

import json
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.conftest import config, moe
from zoo import checkpoint
from zoo.checkpoint import Checkpoints, SaveError, check_run, load_run, save_run, write_run
from zoo.config import MLP
from zoo.decoder import Decoder
from zoo.training.optimizer import make_optimizer
from zoo.training.settings import Optimizer
from zoo.training.step import TrainState


def state(step, size=3):
    params = {"params": {"a": {"w": jnp.full(size, float(step)), "b": jnp.ones(2)}}}
    optimizer = make_optimizer(Optimizer(), 10)
    return TrainState(
        jnp.asarray(step), params, optimizer.init(params["params"]), jax.random.key(step)
    )


def assert_equal(a, b):
    def compare(x, y):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)

    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(compare, a, b)


def test_what_is_restored_is_what_was_saved(tmp_path):
    saved = Checkpoints(tmp_path)
    saved.save(state(7), {"data": {"next": [1, None, "x"]}}, loss=2.5)
    saved.close()
    again = Checkpoints(tmp_path)
    found, extra = again.restore(jax.eval_shape(lambda: state(0)))
    assert_equal(found, state(7))
    assert extra["data"] == {"next": [1, None, "x"]}
    again.close()


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), {})
    checkpoints.wait()
    with pytest.raises(ValueError, match=r"another model.*\n  params/a/w: \[3\] there, \[4\] here"):
        checkpoints.restore(state(1, size=4))
    checkpoints.close()


def test_a_checkpoint_that_names_no_shapes_is_restored(tmp_path):
    """As those of earlier versions do not."""
    saved = Checkpoints(tmp_path)
    saved.save(state(7), {})
    saved.close()
    (file,) = tmp_path.glob("**/7/extra/metadata")
    extra = json.loads(file.read_text())
    del extra["shapes"]
    file.write_text(json.dumps(extra))
    again = Checkpoints(tmp_path)
    assert_equal(again.restore(state(0))[0], state(7))
    again.close()


def test_last_ones_and_the_best_are_kept(tmp_path):
    saved = Checkpoints(tmp_path, keep=2)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, None), (6, 1.5)):
        saved.save(state(step), {}, loss)
    saved.close()
    assert sorted(p.name for p in saved.folder.iterdir()) == ["2", "5", "6"]
    again = Checkpoints(tmp_path, keep=2)
    assert (again.best, again.latest) == (2, 6)
    again.save(state(7), {}, 0.5)
    again.close()
    assert sorted(p.name for p in saved.folder.iterdir()) == ["6", "7"]


def test_without_validation_the_latest_is_best(tmp_path):
    saved = Checkpoints(tmp_path)
    assert (saved.best, saved.latest) == (None, None)
    saved.save(state(1), {})
    saved.save(state(2), {})
    saved.close()
    assert Checkpoints(tmp_path).best == 2


def test_state_may_be_overwritten_while_it_is_saved(tmp_path):
    """Saves run behind the next steps, which reuse the memory of the state."""
    grow = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2 + 1, tree), donate_argnums=0)
    now, saved = state(1, size=2_000_000), Checkpoints(tmp_path)
    saved.save(now, {})
    params = now.params
    for _ in range(20):
        params = grow(params)
    saved.wait()
    found, _ = saved.restore(jax.eval_shape(lambda: state(1, size=2_000_000)))
    assert_equal(found.params, state(1, size=2_000_000).params)
    saved.close()


def test_other_configuration_is_refused_with_every_difference(tmp_path):
    write_run(tmp_path, {"settings": {"steps": 10, "optimizer": {"rate": 0.1}, "log": 1}, "x": 1})
    now = {"settings": {"steps": 20, "optimizer": {"rate": 0.3}, "log": 5}, "x": 2}
    with pytest.raises(ValueError, match="another configuration") as e:
        check_run(tmp_path, now, free=("settings.log", "x"))
    assert "settings.optimizer.rate: 0.1 there, 0.3 now" in str(e.value)
    assert "settings.steps: 10 there, 20 now" in str(e.value)
    assert "log" not in str(e.value)
    assert "--workdir" in str(e.value)
    same = {"settings": {"steps": 10, "optimizer": {"rate": 0.1}, "log": 2}, "x": 1}
    check_run(tmp_path, same, free=("settings.log",))


def test_folders_that_are_no_runs_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no run of train.py: it has no run\.json"):
        load_run(tmp_path)
    (tmp_path / checkpoint.RUN_FILE).write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is not JSON"):
        load_run(tmp_path)


def test_a_model_saved_as_a_run_comes_back_in_its_own_types(tmp_path):
    cfg = config(MLP(32), moe())
    cfg = checkpoint_config(cfg)
    params = Decoder(cfg, param_dtype=jnp.bfloat16).init(jax.random.key(0), jnp.zeros((1, 2), int))
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    (tokenizer / "model.safetensors").write_text("not copied")
    save_run(tmp_path / "run", cfg, params, tokenizer)
    found_config, found, folder = load_run(tmp_path / "run")
    assert found_config == cfg
    assert_equal(found, params)
    assert {str(x.dtype) for x in jax.tree.leaves(found)} == {"bfloat16", "float32"}
    assert [p.name for p in folder.iterdir()] == ["tokenizer.json"]
    with pytest.raises(ValueError, match="is not empty"):
        save_run(tmp_path / "run", cfg, params)


def checkpoint_config(cfg):
    """As it reads back from its own Hugging Face dict."""
    import zoo

    return zoo.config_from_hf(
        {
            "model_type": "deepseek_v3",
            "vocab_size": 32,
            "hidden_size": 8,
            "intermediate_size": 16,
            "moe_intermediate_size": 8,
            "num_hidden_layers": 2,
            "first_k_dense_replace": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "q_lora_rank": None,
            "kv_lora_rank": 8,
            "qk_nope_head_dim": 4,
            "qk_rope_head_dim": 4,
            "v_head_dim": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
        }
    )


def test_too_little_space_is_told_before_anything_is_written(tmp_path, monkeypatch):
    saved = Checkpoints(tmp_path)
    saved.save(state(1), {})
    saved.wait()
    usage = namedtuple("usage", "total used free")(100, 90, 10)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(SaveError, match=r"MB are free.*Earlier checkpoints are whole: 1"):
        saved.save(state(2), {})
    assert saved.latest == 1


FULL_DISK = """
import resource, sys
import jax
from tests.training.test_checkpoint import state
from zoo.checkpoint import Checkpoints, SaveError

saved = Checkpoints(sys.argv[1])
saved.save(state(1, size=200_000), {})
saved.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
big = state(2, size=200_000)
big = big.replace(params={"params": {"a": {
    "w": jax.random.normal(jax.random.key(0), (200_000,)), "b": big.params["params"]["a"]["b"]}}})
try:
    saved.save(big, {})
    saved.wait()
except SaveError as e:
    print("refused:", e)
"""


def test_a_disk_that_fills_up_during_a_save_leaves_earlier_ones(tmp_path):
    """A limit on the size of files stands in for the disk: writes fail in the background thread."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path],
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert "refused:" in done.stdout, done.stderr[-2000:]
    assert "Earlier checkpoints are whole: 1" in done.stdout
    assert "File too large" in done.stdout
    assert "Traceback" not in done.stderr
    again = Checkpoints(tmp_path)
    assert again.latest == 1
    found, _ = again.restore(jax.eval_shape(lambda: state(1, size=200_000)))
    assert_equal(found.params, state(1, size=200_000).params)
    again.save(state(2), {})
    again.close()
    assert again.latest == 2
    assert sorted(p.name for p in again.folder.iterdir()) == ["1", "2"]


def test_who_reads_a_run_leaves_its_unfinished_save_alone(tmp_path):
    """It may go on in another process. The run itself clears it away, before it saves again."""
    cfg = config(MLP(32))
    save_run(tmp_path, cfg, Decoder(cfg).init(jax.random.key(0), jnp.zeros((1, 2), int)))
    unfinished = tmp_path / checkpoint.CHECKPOINTS / "1.orbax-checkpoint-tmp"
    unfinished.mkdir()
    load_run(tmp_path)
    assert unfinished.exists()
    again = Checkpoints(tmp_path)
    again.save(state(1), {})
    again.close()
    assert not unfinished.exists()
    assert again.latest == 1


def test_run_file_is_replaced_whole(tmp_path):
    write_run(tmp_path, {"a": 1})
    write_run(tmp_path, {"a": 2})
    assert json.loads((tmp_path / checkpoint.RUN_FILE).read_text()) == {"a": 2}
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.RUN_FILE]
