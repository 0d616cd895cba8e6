"""Two processes on loopback train as one, outlive neither each other nor a kill, and go on."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import zoo
from tests.processes import ROOT, ends, free_address, said
from tests.training import hosts_config
from tests.training.test_loop import without_speed
from tests.waiting import LONG
from zoo import checkpoint, hosts
from zoo.training import loop
from zoo.training.settings import from_config

CHILD = "-m", "tests.training.hosts_child"
CONFIG = f"--config={hosts_config.__file__}"


def launch(*command: object, bytes_of_second: int | None = None) -> list[subprocess.Popen]:
    """Two processes with two devices each; the second may write files of so many bytes only."""
    address = f"--coordinator={free_address()}"
    command = [sys.executable, *map(str, command), address, "--processes=2"]
    env = os.environ | {
        "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(ROOT)
    }  # fmt: skip
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    processes = [
        subprocess.Popen([*command, f"--process={i}"], cwd=ROOT, env=env, text=True, **pipes)
        for i in range(2)
    ]
    if bytes_of_second is not None:
        resource.prlimit(processes[1].pid, resource.RLIMIT_FSIZE, (bytes_of_second,) * 2)
    return processes


def whole(workdir: Path) -> list[int]:
    """The steps of checkpoints that are there."""
    names = (p.name for p in (workdir / checkpoint.CHECKPOINTS).iterdir())
    return sorted(int(name) for name in names if name.isdigit())


def assert_same(*workdirs: Path) -> None:
    """Two runs, by their metrics and exports."""
    for a, b in zip(*map(without_speed, workdirs), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    got, wanted = (jax.tree.leaves(zoo.load(workdir / "hf").params) for workdir in workdirs)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_a_run_goes_on_whatever_happens_to_hosts(tmp_path, monkeypatch):
    """One is killed, one has a full disk, then there is one, and two again: the run of nobody's
    interruption, by its metrics, evaluation and export, of which each process writes its share.
    The last two then train adapters on that export, as one process does."""
    together, alone, cache = (tmp_path / name for name in ("together", "alone", "cache"))
    one = from_config(hosts_config.get_config(None))
    loop.run(one, alone, cache)
    flags = CONFIG, f"--workdir={together}", f"--cache_dir={cache}"

    first, second = launch(*CHILD, 6, 1, *flags)
    for process in (first, second):
        assert any(line == "paused\n" for line in process.stdout), process.stderr.read()[-3000:]
    second.send_signal(signal.SIGKILL)
    second.wait()
    _, error = first.communicate("\n", timeout=LONG)
    assert first.returncode != 0
    assert "process 0 of 2 ends" in error or "another task died" in error
    kept = whole(together)
    assert kept[-1] in (2, 4)

    processes = launch(*CHILD, 0, 1, *flags, bytes_of_second=1000)
    errors = [error for _, error in ends(processes)]
    assert all(p.returncode not in (0, None) for p in processes), errors
    noticed = "another task died", "process 0 of 2 ends", "a checkpoint could not be written"
    assert any(words in errors[0] for words in noticed), errors[0][-3000:]
    assert "a checkpoint could not be written" in errors[1]
    assert "Is the disk full?" in errors[1]
    assert whole(together) == kept

    advance = loop._Loop.advance

    def interrupted(self):
        advance(self)
        if self.step == 7:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "advance", interrupted)
        assert loop.run(one, together, cache).step == 7

    processes = launch(*CHILD, 0, 2, *flags)
    outs = ends(processes)
    assert [p.returncode for p in processes] == [0, 0], [error[-3000:] for _, error in outs]
    assert_same(together, alone)
    reports = [json.loads((w / "evaluation.json").read_text()) for w in (together, alone)]
    assert reports[0]["loss"] == pytest.approx(reports[1]["loss"], rel=1e-5)

    adapters = from_config(hosts_config.adapters(together / "hf", None))
    loop.run(adapters, tmp_path / "adapters_alone", cache)
    assert_same(tmp_path / "adapters", tmp_path / "adapters_alone")

    wrote = [set(said(out, "wrote")) for out, _ in outs]
    assert all(len(names) > 1 for names in wrote)
    assert wrote[0] | wrote[1] == {p.name for p in (together / "hf").glob("*.safetensors")}
    assert not wrote[0] & wrote[1]

    found = tmp_path / "found.json"
    where = f"--model={together}", "--split=test", f"--out={found}", f"--cache_dir={cache}"
    processes = launch("eval.py", *where)
    outs = ends(processes)
    assert [p.returncode for p in processes] == [0, 0], [error[-3000:] for _, error in outs]
    from zoo.training.measure import measure

    want = measure(alone, split="test", cache_dir=cache)
    assert json.loads(found.read_text())["loss"] == pytest.approx(want["loss"], rel=1e-5)


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
