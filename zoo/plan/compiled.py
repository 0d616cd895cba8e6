"""Programs compiled for TPUs that are not there, by libtpu on any Linux machine."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import time
import warnings
from dataclasses import dataclass

import jax

from zoo import sharding
from zoo.config import Config
from zoo.plan.hardware import GiB, Topology
from zoo.plan.hlo import Counted, count
from zoo.plan.workload import Workload, program


@dataclass(frozen=True)
class Compiled:
    """What the compiler said of a program, per device, in bytes.

    `total` is all that is held at once; where it is more than the device has, the compiler gave up
    and `total` of `available` is all that is known: then `counted` is None. `seconds` is how long
    it took.
    """

    total: int
    temporaries: int
    counted: Counted | None
    seconds: float
    text: str = ""
    available: int | None = None


class CannotCompile(ValueError):
    """There is no compiler for this topology here."""


def available() -> bool:
    """Whether libtpu is installed (the extra `plan`)."""
    return importlib.util.find_spec("libtpu") is not None


def devices(topology: Topology) -> list[jax.Device]:
    """Devices to lay a mesh on and compile for; they cannot run anything.

    Raises:
        CannotCompile: no libtpu, a GPU, or a slice that libtpu does not know.
    """
    if not topology.chip.is_tpu:
        raise CannotCompile(f"topology {topology}: programs for GPUs are compiled on GPUs only")
    if not available():
        raise CannotCompile(
            f"topology {topology} needs TPU's compiler: pip install 'zoo-jax[plan]'"
        )
    from jax.experimental import topologies

    # Without these it asks the cloud who it is, for minutes, and one process keeps others out.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    name = f"{topology.chip.name}:{'x'.join(map(str, topology.shape))}"
    how = {"chips_per_host_bounds": [1, 1, 1]} if math.prod(topology.shape) == 1 else {}
    how |= {"num_slices": topology.slices} if topology.slices > 1 else {}
    try:
        found = topologies.get_topology_desc(topology_name=name, platform="tpu", **how)
    except Exception as e:  # whatever libtpu raises, its first line says what it does not know
        raise CannotCompile(f"topology {topology}: {str(e).splitlines()[0]}") from None
    if len(found.devices) != topology.devices:  # v4, whose two cores run as one device
        raise CannotCompile(
            f"topology {topology}: libtpu makes {len(found.devices)} devices of it, not the "
            f"{topology.devices} that JAX has there"
        )
    return found.devices


def compile_for(
    cfg: Config, work: Workload, mesh: jax.sharding.Mesh, rules: sharding.Rules
) -> Compiled:
    """Lowers and compiles the program of `work` for the devices of `mesh`.

    Raises:
        ValueError: sizes that the mesh does not divide.
    """
    start = time.perf_counter()
    wanted = program(cfg, work, mesh, rules)  # outside: in the mesh, JAX would run on its devices
    with sharding.use(mesh, rules):
        lowered = wanted.run.lower(*wanted.arguments)
        try:
            compiled = _compile(lowered)
        except jax.errors.JaxRuntimeError as e:
            needed = _needed(str(e))
            if needed is None:
                raise
            return Compiled(needed[0], 0, None, time.perf_counter() - start, available=needed[1])
    stats, text = compiled.memory_analysis(), compiled.as_text()
    held = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    total = held + stats.temp_size_in_bytes + stats.generated_code_size_in_bytes
    counted = count(text, list(mesh.shape.items()))
    seconds = time.perf_counter() - start
    return Compiled(total, stats.temp_size_in_bytes, counted, seconds, text)


def _compile(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """What JAX keeps of programs for absent devices it cannot read back, and would warn of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*persistent compilation cache.*")
        return lowered.compile()


_NEEDED = (
    r"Used ([\d.]+)([GMT]) of ([\d.]+)([GMT]) hbm",
    r"\(([\d.]+)([GMT])\) exceeds available HBM \(([\d.]+)([GMT])\)",
)


def _needed(message: str) -> tuple[int, int] | None:
    """Bytes needed and available, from "... memory space hbm. Used 20.31G of 15.75G hbm"."""
    found = next((m for pattern in _NEEDED if (m := re.search(pattern, message))), None)
    if found is None:
        return None
    scale = {"M": 2**20, "G": GiB, "T": 2**40}
    return int(float(found[1]) * scale[found[2]]), int(float(found[3]) * scale[found[4]])
