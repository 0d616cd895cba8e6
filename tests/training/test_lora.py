"""Training by adapters: what learns, what stays, and a run from one folder to another."""

import ast
import filecmp
import math
import re
import runpy
import shlex
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests import examples
from tests.hf import quantise
from tests.training.test_checkpoint import assert_equal
from tests.training.tiny import get_config
from zoo import checkpoint, cli, lora, sharding
from zoo.data import DataConfig
from zoo.quantized import Quantized
from zoo.training import loop
from zoo.training.logs import read_metrics
from zoo.training.measure import measure
from zoo.training.optimizer import make_optimizer
from zoo.training.run import prepare_run
from zoo.training.settings import Balance, Optimizer, from_config
from zoo.training.step import create_state, make_step, state_shardings

pytestmark = pytest.mark.xdist_group("runs")

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests/golden/llama"
OPTIMIZER = make_optimizer(Optimizer(learning_rate=2e-2, warmup=2), 100)


def adapted(model, quantize=None):
    params = examples.random_params(model)
    params = params if quantize is None else zoo.quantize(params, quantize)
    return lora.adapt(params, 2, 4.0, jax.random.key(0))


def bytes_of(tree):
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def test_only_adapters_learn(sparse, batch):
    """Routers and their biases stay too; moments and gradients are of the adapters alone."""
    params = adapted(sparse)
    learnt, frozen = map(jax.device_get, lora.split(params))
    step = make_step(sparse, OPTIMIZER, Balance(), accumulate=2)
    state = create_state(sparse, OPTIMIZER, 0, params)
    moments = bytes_of(state.opt_state)
    assert 2 * bytes_of(learnt) <= moments < 2 * bytes_of(learnt) + 64
    seen = []
    for _ in range(20):
        state, metrics = step(state, batch)
        seen.append(float(metrics["loss"]))
    assert seen[-1] < seen[0] - 0.3
    now, stayed = lora.split(state.params)
    assert_equal(stayed, frozen)
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (now, learnt)), strict=True)]
    assert min(moved) > 0
    assert moments == bytes_of(state.opt_state)


def test_a_step_makes_no_gradient_of_what_stays(dense, batch):
    """Without it, a third of all products; with rank 2 of 16, adapters cost some of that."""

    def flops(params):
        step = make_step(dense, OPTIMIZER, Balance())
        state = jax.eval_shape(lambda: create_state(dense, OPTIMIZER, 0, params))
        return step.lower(state, batch).compile().cost_analysis()["flops"]

    assert flops(adapted(dense)) < 0.9 * flops(examples.random_params(dense))


@pytest.mark.parametrize(("how", "spec"), [("int8", "data=1"), ("int4", "stage=2,fsdp=2")])
def test_adapters_learn_on_quantised_weights(dense, batch, how, spec):
    """In stages too, which compute what one device does with what they learnt."""
    mesh = zoo.make_mesh(spec, jax.devices()[: math.prod(sharding.mesh_sizes(spec).values())])
    params = adapted(dense, how)
    w = params["params"]["stack_0"]["layer_0"]["mlp"]["up"]["w"]
    assert isinstance(w.base, Quantized)
    codes = np.asarray(w.base.codes)
    placed = state_shardings(dense, OPTIMIZER, mesh, params=params)
    with sharding.use(mesh):
        step = make_step(dense, OPTIMIZER, Balance(), placed=placed)
        state = create_state(dense, OPTIMIZER, 0, params, placed)
        state, first = step(state, batch)
        for _ in range(20):
            state, last = step(state, batch)
        got = jax.jit(dense.apply)(state.params, batch["tokens"]).logits
    assert last["loss"] < first["loss"] - 0.3
    found = state.params["params"]["stack_0"]["layer_0"]["mlp"]["up"]["w"]
    np.testing.assert_array_equal(found.base.codes, codes)
    learnt = jax.tree.map(np.asarray, state.params)
    wanted = jax.jit(dense.apply)(lora.merged(learnt), batch["tokens"]).logits
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


def documented(name):
    """The settings of the command in docs/finetune.md that runs `configs/NAME.py`."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/finetune.md").read_text(), re.DOTALL)
    (line,) = (block.replace("\\\n", "") for block in blocks if f"configs/{name}.py" in block)
    flags = dict(part.removeprefix("--config.").split("=", 1) for part in shlex.split(line)[2:])
    config = runpy.run_path(str(ROOT / flags.pop("--config")))["get_config"]()
    is_text = re.compile(r"[a-z/-]+").fullmatch
    values = {k: text if is_text(text) else ast.literal_eval(text) for k, text in flags.items()}
    config.update_from_flattened_dict(values)
    return config


def settings(start=FOLDER, **changes):
    """Of the documented command, on a tiny model for a few steps."""
    config, tiny = documented("lora"), get_config()
    config.data, config.init_from = tiny.data, str(start)
    config.data.vocab_size = DataConfig.vocab_size
    config.mesh, config.accumulate, config.lora.rank, config.lora.base = None, 2, 2, "bfloat16"
    config.steps, config.evaluation.every, config.checkpoint.every = 12, 6, 6
    config.optimizer.learning_rate, config.optimizer.warmup, config.optimizer.decay = 2e-2, 2, 4
    config.update_from_flattened_dict(changes)
    return from_config(config)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    workdir = tmp_path_factory.mktemp("runs") / "lora"
    return workdir, loop.run(settings(), workdir, cache)


def state_of(workdir, cache):
    run = prepare_run(settings(), workdir, cache)
    run.checkpoints.close()
    return run.state


def test_a_run_learns_and_exports_merged_weights(finished, cache, tmp_path):
    workdir, outcome = finished
    losses = [r["loss"] for r in read_metrics(workdir) if "loss" in r]
    assert np.mean(losses[-3:]) < losses[0] - 0.1
    params = lora.merged(state_of(workdir, cache).params)
    exported = zoo.load(workdir / "hf")
    assert exported.config == zoo.load(FOLDER).config
    assert_equal(exported.params, jax.tree.map(lambda x: x.astype(jnp.float32), params))
    assert_equal(checkpoint.load_run(workdir, "latest")[1], params)
    found = measure(workdir, cache_dir=cache)
    assert found["loss"] == pytest.approx(outcome.summary["loss"], rel=1e-3)
    assert cli.main(["convert", str(workdir), str(tmp_path / "hf")]) == 0
    assert zoo.load(tmp_path / "hf").source.specs == exported.source.specs


def test_checkpoints_hold_adapters_alone(finished):
    files = (finished[0] / "checkpoints/12/params").rglob("*")
    held = sum(file.stat().st_size for file in files if file.is_file())
    assert held < 4 * zoo.describe.size(zoo.load(FOLDER).config).parameters


def test_resumed_equals_uninterrupted(finished, tmp_path, cache):
    workdir = tmp_path / "lora"
    shutil.copytree(finished[0], workdir)
    shutil.rmtree(workdir / "checkpoints/12")
    assert loop.run(settings(), workdir, cache).step == 12
    assert_equal(state_of(workdir, cache), state_of(finished[0], cache))


def test_a_run_on_a_quantised_folder(tmp_path, cache, monkeypatch):
    """Codes stay, the run goes on from them, and the export is what they mean plus adapters, of
    which there is never more than a layer as floats; nor where the run is converted."""
    made, read = [], lora.Sum.__getitem__

    def noted(self, at):
        made.append((self.shape, at))
        return read(self, at)

    monkeypatch.setattr(lora.Sum, "__getitem__", noted)
    start = quantise.make(FOLDER, tmp_path / "int4", "int4")
    spec = settings(start, **{"lora.base": "stored", "steps": 6})
    loop.run(spec, tmp_path / "run", cache)
    losses = [r["loss"] for r in read_metrics(tmp_path / "run") if "loss" in r]
    assert losses[-1] < losses[0] - 0.05
    layers = zoo.load(start).config.stacks[0].repeats
    assert cli.main(["convert", str(tmp_path / "run"), str(tmp_path / "hf")]) == 0
    assert len(made) == 2 * 7 * layers
    assert all(shape[0] == layers and len(at) == 1 for shape, at in made)
    names = [path.name for path in (tmp_path / "run/hf").iterdir()]
    assert filecmp.cmpfiles(tmp_path / "run/hf", tmp_path / "hf", names, False)[0] == names
    again = prepare_run(spec, tmp_path / "run", cache)
    again.checkpoints.close()
    stayed = jax.tree.leaves(lora.split(again.state.params)[1])
    assert_equal(stayed, jax.tree.leaves(zoo.load(start).params))
    assert any(x.dtype == jnp.int32 for x in stayed)
    exported, merged = zoo.load(tmp_path / "run/hf"), lora.merged(again.state.params)
    assert "quantization_config" not in exported.source.config
    for a, b in zip(*map(jax.tree.leaves, (exported.params, merged)), strict=True):
        np.testing.assert_allclose(a, b.astype(a.dtype), rtol=1e-6, atol=1e-7)


def test_another_base_is_refused(finished, tmp_path, cache):
    """The same command, when the folder has other weights than the adapters were trained on."""
    workdir, start = tmp_path / "lora", tmp_path / "folder"
    shutil.copytree(finished[0], workdir)
    ckpt = zoo.load(FOLDER)
    zoo.save_hf(start, ckpt.config, jax.tree.map(lambda x: 2 * x, ckpt.params), source=ckpt.source)
    record = checkpoint.read_run(workdir)
    record["settings"]["init_from"] = str(start)
    checkpoint.write_run(workdir, record)
    with pytest.raises(ValueError, match=r"base: '[0-9a-f]{16}' there, '[0-9a-f]{16}' now"):
        prepare_run(settings(start), workdir, cache)
    with pytest.raises(ValueError, match=r"adapters for other weights than .*folder holds now"):
        checkpoint.load_run(workdir)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora.rank": 3}, "settings.lora.rank: 2 there, 3 now"),
        ({"lora": None}, "settings.lora.rank: 2 there, None now"),
    ],
)
def test_other_adapters_do_not_continue_a_run(finished, cache, changes, message):
    with pytest.raises(ValueError, match=message):
        prepare_run(settings(**changes), finished[0], cache)


def test_targets_and_bases_that_do_not_fit_stop_before_work(finished, tmp_path, cache):
    with pytest.raises(ValueError, match="'mlp/gait' is no linear map"):
        prepare_run(settings(**{"lora.targets": ("mlp/gait",)}), tmp_path / "run", cache)
    with pytest.raises(ValueError, match=r"lora.base='bfloat16', but init_from=.* is a run"):
        prepare_run(settings(finished[0]), tmp_path / "run", cache)
    assert not (tmp_path / "run" / checkpoint.RUN_FILE).exists()


def test_weights_that_are_not_there_are_named_before_anything_is_made(tmp_path):
    start = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"init_from=.*nowhere. does not exist: name a Hug"):
        prepare_run(settings(start), tmp_path / "run")
    assert not (tmp_path / "run").exists()
