"""Whole runs of a tiny model on the committed corpus."""

import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import zoo
from tests.processes import ROOT
from tests.training.test_checkpoint import assert_equal
from tests.training.tiny import get_config
from tests.waiting import LONG
from zoo import checkpoint, cli
from zoo.training import loop
from zoo.training.logs import Display, read_metrics
from zoo.training.measure import measure
from zoo.training.run import prepare_run
from zoo.training.settings import from_config

TINY = Path(__file__).with_name("tiny.py")
STAGES = {"mesh": "stage=2,data=4", "model.num_hidden_layers": 5}


def settings(**changes):
    config = get_config()
    config.update_from_flattened_dict(changes)
    return from_config(config)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    """A run that nobody disturbed, and what it returned."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    spec = settings(**{"samples.prompts": ("The tide ", "x"), "samples.tokens": 8})
    return workdir, loop.run(spec, workdir, cache)


def final_state(workdir, cache):
    run = prepare_run(settings(), workdir, cache)
    run.checkpoints.close()
    return run.state, run.extra


@pytest.fixture(scope="module")
def final(finished, cache):
    """The last state of the undisturbed run, and what was kept beside it."""
    return final_state(finished[0], cache)


def without_speed(workdir):
    records = read_metrics(workdir)
    return [{k: v for k, v in r.items() if k not in ("tokens_per_second", "mfu")} for r in records]


def test_a_run_learns_and_leaves_everything(finished):
    workdir, outcome = finished
    assert outcome.signal is None
    assert outcome.step == 48
    losses = [r["loss"] for r in read_metrics(workdir) if "loss" in r]
    assert len(losses) == 48
    assert np.mean(losses[-4:]) < losses[0] - 0.1
    for path in outcome.summary["paths"].values():
        assert Path(path).exists()
    report = json.loads((workdir / "evaluation.json").read_text())
    assert report["loss"] == outcome.summary["loss"]
    assert list(report["expert_load"]) == ["1"]
    samples = (workdir / "samples.txt").read_text()
    assert "prompt 'The tide '" in samples
    assert samples.count("---\n") == 2


def test_export_and_checkpoint_measure_the_same(finished, cache):
    workdir, outcome = finished
    run = measure(workdir, cache_dir=cache)
    exported = measure(workdir / "hf", get_config(), cache_dir=cache)
    assert run["loss"] == pytest.approx(outcome.summary["loss"], rel=1e-6)
    assert run["loss"] == exported["loss"]
    assert run["bits_per_byte"] == pytest.approx(outcome.summary["bits_per_byte"], rel=1e-6)
    assert exported["corpus_sha256"] == run["corpus_sha256"]
    params = checkpoint.load_run(workdir, "latest")[1]
    assert_equal(zoo.load(workdir / "hf").params, params)


def test_a_run_converts_to_what_it_exported(finished, tmp_path):
    assert cli.main(["convert", str(finished[0]), str(tmp_path / "hf")]) == 0
    names = {path.name for path in (finished[0] / "hf").iterdir()}
    assert {path.name for path in (tmp_path / "hf").iterdir()} == names
    assert filecmp.cmpfiles(finished[0] / "hf", tmp_path / "hf", names, False)[1:] == ([], [])
    assert json.loads((tmp_path / "hf/config.json").read_text())["eos_token_id"] == 0


def test_training_with_text_that_other_texts_cut_short_is_refused(finished, cache):
    with pytest.raises(ValueError, match="no run, so it does not say on which text"):
        measure(finished[0] / "hf", cache_dir=cache)


def test_the_same_command_again_only_finishes(finished, cache):
    workdir, outcome = finished
    before = without_speed(workdir)
    again = loop.run(settings(), workdir, cache)
    assert again.step == outcome.step
    assert again.summary["loss"] == outcome.summary["loss"]
    assert without_speed(workdir) == before


@pytest.mark.parametrize(("how", "pause"), [(signal.SIGTERM, 7), (signal.SIGKILL, 34)])
def test_interrupted_and_resumed_equals_uninterrupted(finished, final, cache, tmp_path, how, pause):
    """Asked to stop it saves; killed it falls back to its last checkpoint: the same bits.

    It waits for the signal: only how far the save of step 32 came before the kill is chance.
    """
    workdir, log = tmp_path / "whole", tmp_path / "log"
    command = [sys.executable, "-m", "tests.training.hosts_child", str(pause), "1"]
    command += [f"--config={TINY}", f"--workdir={workdir}", f"--cache_dir={cache}"]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(jax.device_count())}
    environment["PYTHONPATH"] = str(ROOT)
    with (
        log.open("w") as file,
        subprocess.Popen(command, stderr=file, env=environment, **pipes) as process,
    ):
        assert any(line == "paused\n" for line in process.stdout), log.read_text()
        process.send_signal(how)
        process.communicate("\n", timeout=LONG)
    text, kept = log.read_text(), checkpoint.Checkpoints(workdir, tidy=False).latest
    if how == signal.SIGTERM:
        assert kept == pause, text
        assert process.returncode == 128 + how, text
        assert "the same command goes on from there" in text
        assert f"after step {kept}" in text
    else:
        assert process.returncode == -how, text
        assert kept in (16, 32), text
    resumed = loop.run(settings(), workdir, cache)
    assert resumed.step == 48
    state, extra = final_state(workdir, cache)
    assert_equal(state, final[0])
    assert extra == final[1]
    assert without_speed(workdir) == without_speed(finished[0])
    assert (workdir / "evaluation.json").exists()


def test_a_run_that_nobody_reads_saves_its_step(tmp_path, cache, unread, monkeypatch):
    """As of `train.py 2>&1 | head`: where it would have ended without."""
    monkeypatch.setattr(sys, "stderr", unread)
    outcome = loop.run(settings(), tmp_path / "run", cache)
    assert outcome.signal is signal.SIGPIPE
    assert outcome.step < 16
    kept = checkpoint.Checkpoints(tmp_path / "run", tidy=False)
    assert kept.latest == outcome.step
    kept.close()


def test_a_run_moves_between_meshes(finished, final, tmp_path, cache):
    """Begun on one device, ended on eight, and read on another eight and on one."""
    workdir = tmp_path / "whole"
    shutil.copytree(finished[0], workdir)
    shutil.rmtree(workdir / "checkpoints/48")
    outcome = loop.run(settings(mesh="data=2,expert=2,tensor=2"), workdir, cache)
    for moved, stayed in zip(*map(without_speed, (workdir, finished[0])), strict=True):
        assert moved == pytest.approx(stayed, rel=1e-5)
    again = prepare_run(settings(mesh="fsdp=4,tensor=2"), workdir, cache)
    again.checkpoints.close()
    want, extra = final
    assert again.extra == extra
    moments = jax.tree.leaves(again.state.opt_state)
    for leaf, one in zip(*map(jax.tree.leaves, (again.state.params, want.params)), strict=True):
        assert len(leaf.sharding.device_set) == 8
        np.testing.assert_allclose(leaf, one, atol=1e-5 * np.abs(one).max())
    cut = [x for x in moments if not x.sharding.is_fully_replicated]
    assert len(cut) > len(moments) / 2
    elsewhere = measure(workdir, cache_dir=cache, mesh="data=4,tensor=2")
    assert elsewhere["loss"] == pytest.approx(outcome.summary["loss"], rel=1e-5)
    assert_equal(zoo.load(workdir / "hf").params, checkpoint.load_run(workdir, "latest")[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh": "fsdp=16"}, "holds 16 device.*there are 8"),
        ({"mesh": "fsdp=8"}, "a batch of 4 rows does not divide over fsdp=8: 8 would"),
        ({"mesh": "data=2,tensor=4"}, "heads=2 does not divide by tensor=4: 2 would"),
        ({"mesh": "data=4,tensor=2", "rules": "fsdp"}, "tensor=2 is in no rule"),
        ({**STAGES, "microbatches": 3}, "microbatches=3 do not divide a batch of 4 rows: 2 or 4"),
        ({**STAGES, "rounds": 4}, "rounds=4 do not divide the 2 .* of 4: rounds could be 1, 2"),
        ({"rules": "fdsp"}, "did you mean 'fsdp'"),
        ({"mesh": "data=4,tensor=2", "rounds": 3}, "rounds=3 would .*: mesh='data=4,tensor=2' ru"),
    ],
)
def test_meshes_that_do_not_fit_stop_before_work(tmp_path, cache, changes, message):
    with pytest.raises(ValueError, match=message):
        prepare_run(settings(**changes), tmp_path / "run", cache)
    assert not (tmp_path / "run").exists()


def test_nan_stops_and_keeps_the_last_good_step(finished, tmp_path, cache):
    """The update of step 33 overflows: its loss was fine, so only a look at the new state can tell,
    and the next step's loss."""
    workdir = tmp_path / "whole"
    shutil.copytree(finished[0], workdir)
    shutil.rmtree(workdir / "checkpoints/48")
    run = prepare_run(settings(), workdir, cache)
    with Display(48, 32) as display:
        steps = loop._Loop(run, display)
        steps.advance()
        run.state = run.state.replace(params=jax.tree.map(lambda x: x * np.inf, run.state.params))
        with pytest.raises(loop.NotFinite, match=r"step 33: .* after the update"):
            steps.save()
        steps.advance()
        with pytest.raises(loop.NotFinite, match=r"step 34: nan.*Step 32 is saved.*init_from") as e:
            steps.save()
        steps.close()
    run.checkpoints.close()
    assert "optimizer.learning_rate" in str(e.value)
    kept = checkpoint.Checkpoints(workdir)
    assert kept.latest == 32
    params = kept.restore_params(run.config, 32)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    kept.close()


def test_workdir_of_another_run_is_refused_before_work(finished, cache):
    workdir, _ = finished
    changes = {"optimizer.learning_rate": 0.5, "model.hidden_size": 32}
    with pytest.raises(ValueError, match="another configuration") as e:
        prepare_run(settings(**changes), workdir, cache)
    assert "settings.optimizer.learning_rate: 0.003 there, 0.5 now" in str(e.value)
    assert "model.hidden_size: 16 there, 32 now" in str(e.value)
    assert "init_from" in str(e.value)


def test_what_only_watches_a_run_may_change(finished, cache):
    run = prepare_run(settings(**{"log_every": 7, "checkpoint.keep": 9}), finished[0], cache)
    run.checkpoints.close()
    assert run.step == 48


def test_a_run_that_another_process_trains_is_refused(finished, cache):
    code = "import sys; from zoo.runs import claim; f = claim(sys.argv[1]); print(1); input()"
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, "-uc", code, finished[0]], cwd=ROOT, **pipes) as other:
        assert other.stdout.readline() == "1\n"
        with pytest.raises(ValueError, match=rf"another process \(pid {other.pid}\): wait"):
            prepare_run(settings(), finished[0], cache)
        other.kill()
    prepare_run(settings(), finished[0], cache).checkpoints.close()


def test_other_text_under_the_same_name_is_refused(finished, tmp_path, cache):
    workdir, _ = finished
    record = checkpoint.read_run(workdir)
    checkpoint.write_run(tmp_path, record | {"data": record["data"] | {"corpus_sha256": "0"}})
    with pytest.raises(ValueError, match=r"data\.corpus_sha256: '0' there"):
        prepare_run(settings(), tmp_path, cache)


def test_a_run_starts_from_weights_of_a_run_or_a_folder(finished, tmp_path, cache):
    workdir, _ = finished
    config = get_config()
    with config.unlocked():
        config.model = None
    weights = zoo.load(workdir / "hf").params
    for start in (workdir, workdir / "hf"):
        config.init_from = str(start)
        run = prepare_run(from_config(config), tmp_path / start.name, cache)
        run.checkpoints.close()
        assert run.step == 0
        assert run.data.tokenizer_sha256 == checkpoint.read_run(workdir)["data"]["tokenizer_sha256"]
        if start.name == "hf":
            assert_equal(run.state.params, weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.vocab_size": 300}, "tokenizer has 400 tokens and the model vocab_size=300"),
        ({"data.window": 256}, "data.window=256 is longer than .*=128"),
        ({"samples.prompts": ("x " * 99,)}, "'x x .* and samples.tokens=64 new ones are .*=128"),
        ({"model.hiden_size": 16}, "hiden_size"),
        ({"data.files": ("/nowhere/*.txt",)}, "nowhere"),
    ],
)
def test_settings_that_do_not_fit_stop_before_work(tmp_path, cache, changes, message):
    config = get_config()
    with config.unlocked():
        for name, value in changes.items():
            group, _, field = name.rpartition(".")
            config[group][field] = value
    with pytest.raises(ValueError, match=message):
        prepare_run(from_config(config), tmp_path / "run", cache)
    assert not (tmp_path / "run" / checkpoint.RUN_FILE).exists()
