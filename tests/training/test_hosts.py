"""Two processes on loopback train as one, outlive neither each other nor a kill, and go on."""

import ast
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import zoo
from tests.training import hosts_child, tiny
from tests.training.test_loop import without_speed
from zoo import hosts
from zoo.training import loop
from zoo.training.settings import from_config

ROOT = Path(__file__).parents[2]


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def launch(workdir: Path, steps: int, pause: int = 0) -> list[subprocess.Popen]:
    address = free_address()
    command = [
        sys.executable,
        "-m",
        "tests.training.hosts_child",
        workdir,
        steps,
        pause,
        address,
        2,
    ]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return [
        subprocess.Popen([*map(str, command), str(i)], cwd=ROOT, env=env, text=True, **pipes)
        for i in range(2)
    ]


def said(out: str, word: str) -> list[str]:
    return [line.removeprefix(word + " ") for line in out.splitlines() if line.startswith(word)]


def test_kill_one_resume_and_export(tmp_path):
    together, alone = tmp_path / "together", tmp_path / "alone"
    first, second = launch(together, 100, pause=5)
    for process in (first, second):
        assert any(line == "paused\n" for line in process.stdout)
    second.send_signal(signal.SIGKILL)
    second.wait()
    _, error = first.communicate("\n", timeout=2 * hosts.TIMEOUT)
    assert first.returncode != 0
    assert "process 0 of 2 ends" in error or "another task died" in error

    outs = [p.communicate(timeout=300) for p in launch(together, 6)]
    for out, error in outs:
        assert "losses" in out, error[-3000:]
    found = [ast.literal_eval(said(out, "losses")[0]) for out, _ in outs]
    want = hosts_child.run(alone, 6)
    assert found[0] == found[1]
    assert found[0].keys() == {5, 6}  # steps 1 to 4 came from the checkpoint
    np.testing.assert_allclose(list(found[0].values()), [want[5], want[6]], rtol=1e-5)

    wrote = [set(said(out, "wrote")) for out, _ in outs]
    files = {p.name for p in (together / "hf").glob("*.safetensors")}
    assert all(len(names) > 1 for names in wrote)
    assert wrote[0] | wrote[1] == files
    assert not wrote[0] & wrote[1]
    got, single = (zoo.load(folder / "hf").params for folder in (together, alone))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(single), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_train_py_on_two_hosts_is_the_run_of_one(tmp_path):
    """Metrics, the evaluation and the export; evaluations and checkpoints on the way."""
    together, alone, cache = (tmp_path / name for name in ("together", "alone", "cache"))
    changes = {"steps": 8, "evaluation.every": 4, "checkpoint.every": 4}
    config = tiny.get_config()
    config.update_from_flattened_dict(changes)
    loop.run(from_config(config), alone, cache)
    address = free_address()
    command = [sys.executable, ROOT / "train.py", f"--config={tiny.__file__}:fsdp=-1"]
    command += [f"--config.{name}={value}" for name, value in changes.items()]
    command += [f"--workdir={together}", f"--cache_dir={cache}"]
    command += [f"--coordinator={address}", "--processes=2"]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    processes = [
        subprocess.Popen([*command, f"--process={i}"], cwd=ROOT, env=env, **pipes) for i in range(2)
    ]
    ends = [p.communicate(timeout=300) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], [error[-2000:] for _, error in ends]
    for a, b in zip(*map(without_speed, (together, alone)), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    found, want = (json.loads((w / "evaluation.json").read_text()) for w in (together, alone))
    assert found["loss"] == pytest.approx(want["loss"], rel=1e-5)
    got, single = (zoo.load(folder / "hf").params for folder in (together, alone))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(single), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("box:1234", None, 0), "needs processes and process too"),
        (("box:1234", 2, 2), "process=2 must be from 0 to 1"),
        ((None, 2, None), "need coordinator='address:port'"),
        (("auto", 2, 0), "need coordinator='address:port'"),
    ],
)
def test_start_refuses(arguments, says):
    with pytest.raises(ValueError, match=says):
        hosts.start(*arguments)


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "4"}, False),  # a shell of salloc, not a step of srun
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "a,b"}, True),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "a"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "a"}, True),
    ],
)
def test_launchers_are_recognised(environment, several):
    assert hosts.is_cluster(environment) == several


def test_one_process_needs_no_others():
    hosts.start()
    hosts.meet("nobody")
    assert hosts.is_first()
    assert all(map(hosts.is_turn, range(3)))
    assert hosts.agree(7) == 7
    with pytest.raises(ZeroDivisionError), hosts.one_fate():
        _ = 1 / 0
