"""`zoo plan`: the command line of a plan."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import math
import os
from pathlib import Path
from typing import Any

MODES = ("train", "prefill", "decode")
REMATS = ("nothing", "cheap", "everything")
"""As `zoo.plan.workload` has them, which takes seconds to import."""
MESH = "fsdp=-1"
ALONE = {
    "JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
}  # fmt: skip
"""Without them JAX would take an accelerator, or libtpu say at length that it finds none."""
BASES = ("stored", "float32", "bfloat16", "int8", "int4", "fp8")
"""As `zoo.training.settings.Lora` has them."""
SIZES = ("batch", "length", "accumulate", "microbatches", "rounds", "remat")
"""Of a workload, for which there are flags."""


def add(verbs: Any) -> None:
    """Adds the verb to an argument parser's subparsers."""
    verb = verbs.add_parser("plan", help="memory, time and verdict on a slice, before renting it")
    verb.add_argument("model", nargs="?", help="a preset, a Hugging Face folder, a config.json")
    verb.add_argument(
        "--config", help="a file of train.py, as configs/x.py; MODEL replaces its own"
    )
    verb.add_argument("--topology", required=True, help="v5e:4x4, v5p:8x8x16, h100:64, ...")
    verb.add_argument("--mesh", help="as fsdp=16,expert=64; -1 fills; fsdp=-1 if unset")
    verb.add_argument("--rules", help="a table of zoo.sharding.RULES")
    verb.add_argument("--mode", choices=MODES, default="train")
    verb.add_argument("--batch", type=int, help="rows on all chips together")
    verb.add_argument("--length", type=int, help="tokens of a window, a prompt or a cache's row")
    verb.add_argument("--accumulate", type=int, help="microbatches of a training step")
    verb.add_argument("--microbatches", type=int, help="of a batch that goes through stages")
    verb.add_argument("--rounds", type=int, help="of each microbatch through the stages")
    verb.add_argument("--remat", choices=REMATS, help="what is recomputed backward")
    verb.add_argument("--lora", type=int, metavar="RANK", help="train adapters of this rank alone")
    verb.add_argument("--base", choices=BASES, help="how weights beside adapters are held")
    verb.add_argument("--tokens", type=float, help="a budget to give chip-hours for, as 1e12")
    verb.add_argument("--search", action="store_true", help="rank meshes and batches")
    verb.add_argument("--arithmetic", action="store_true", help="do not compile")
    verb.add_argument("--plot", type=Path, help="write a picture to this PNG")
    verb.set_defaults(run=run)


def without_accelerators() -> None:
    """Leaves them alone, before JAX is imported: shapes need none."""
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)


def run(args: argparse.Namespace) -> None:
    """Plans what the arguments say, and prints it.

    Raises:
        ValueError: something that does not exist, divide or fit together.
    """
    without_accelerators()
    from zoo.plan import hardware, make_plan, picture, report

    _check(args)
    topology = hardware.parse(args.topology)
    cfg, work, name = _from_file(args) if args.config else _from_model(args)
    given = {name: getattr(args, name) for name in SIZES if getattr(args, name) is not None}
    work = dataclasses.replace(work, **given, lora=_adapters(args, work.lora))
    _check_stages(args, given, topology.devices)
    if args.search:
        from zoo.plan.search import search

        plans = search(cfg, work, topology, args.rules, 0 if args.arithmetic else 3)
        report.ranking(plans)
        plan = plans[0]
    else:
        plan = make_plan(cfg, work, topology, args.mesh or MESH, args.rules, not args.arithmetic)
    report.show(plan, name, args.tokens)
    if args.plot is not None:
        picture.draw(plan, name, args.plot)


def _check(args: argparse.Namespace) -> None:
    """Refuses what would be wrong after minutes of compiling."""
    if args.model is None and args.config is None:
        raise ValueError("name a model, or a file of train.py by --config")
    if args.search and args.mesh is not None:
        raise ValueError(f"--search tries all meshes: leave out --mesh={args.mesh}, or --search")
    if args.tokens is not None and not 0 < args.tokens < math.inf:
        raise ValueError(f"--tokens={args.tokens} is no budget: give a number of tokens, as 1e12")
    if args.plot is not None and (args.plot.suffix != ".png" or args.plot.is_dir()):
        raise ValueError(f"--plot={args.plot} is no file to write a PNG to: name one, as plan.png")


def _adapters(args: argparse.Namespace, of_file: Any) -> Any:
    """The file's adapters, with what the flags say of them."""
    from zoo.training.settings import Lora

    flags = {"rank": args.lora, "base": args.base}
    flags = {name: value for name, value in flags.items() if value is not None}
    if args.lora is None and of_file is None and flags:
        raise ValueError(f"--base={args.base} is of adapters: say their rank by --lora")
    return dataclasses.replace(of_file or Lora(), **flags) if flags else of_file


def _check_stages(args: argparse.Namespace, given: dict, devices: int) -> None:
    """Refuses flags of stages where there are none."""
    from zoo.mesh import mesh_sizes

    mesh = args.mesh or MESH
    idle = [f"--{name}={given[name]}" for name in ("microbatches", "rounds") if name in given]
    if not idle or args.search:
        return
    if args.mode != "train" or mesh_sizes(mesh, devices)["stage"] == 1:
        raise ValueError(
            f"{', '.join(idle)}: of a training step on a mesh with stages, not of mode="
            f"{args.mode!r} on {mesh!r}: leave it out, or add stage to --mesh"
        )


def _from_model(args: argparse.Namespace) -> tuple:
    from zoo.cli import find_config
    from zoo.plan import hardware
    from zoo.plan.workload import Workload

    cfg = find_config(args.model)
    devices = hardware.parse(args.topology).devices
    length = min(4096, cfg.max_length)
    return cfg, Workload(args.mode, args.batch or devices, length), args.model


def _from_file(args: argparse.Namespace) -> tuple:
    """The model and the sizes of a training step from a file with `get_config`.

    A model that is named stands for that of the file, which fine-tuning gets from elsewhere.
    """
    from zoo.cli import find_config as of_model
    from zoo.plan.workload import Workload
    from zoo.training.run import find_config
    from zoo.training.settings import from_config

    path, _, variant = args.config.partition(":")
    found = importlib.util.spec_from_file_location("config_to_plan", path)
    if found is None or not Path(path).is_file():
        raise ValueError(f"--config={path} is no Python file with a get_config()")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"--config={path} has no get_config(): name a file of train.py")
    config = module.get_config(*([variant] if variant else []))
    if args.model is not None:
        config["init_from"] = args.model
    settings = from_config(config)
    train = args.mode == "train"
    work = Workload(
        args.mode, settings.data.batch, settings.data.window,
        settings.accumulate if train else 1, settings.remat,
        optimizer=settings.optimizer, mtp_loss=settings.mtp_loss,
        microbatches=settings.microbatches, rounds=settings.rounds,
        lora=settings.lora if train else None,
    )  # fmt: skip
    if args.model is None:
        return find_config(settings), work, args.config
    return of_model(args.model), work, f"{args.model} by {args.config}"
