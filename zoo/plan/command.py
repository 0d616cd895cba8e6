"""`zoo plan`: the command line of a plan."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

MODES = ("train", "prefill", "decode")
REMATS = ("nothing", "cheap", "everything")
"""As `zoo.plan.workload` has them, which takes seconds to import."""


def add(verbs: Any) -> None:
    """Adds the verb to an argument parser's subparsers."""
    verb = verbs.add_parser("plan", help="memory, time and verdict on a slice, before renting it")
    verb.add_argument("model", nargs="?", help="a preset, a Hugging Face folder, a config.json")
    verb.add_argument("--config", help="a file of train.py, as configs/x.py, instead of a model")
    verb.add_argument("--topology", required=True, help="v5e:4x4, v5p:8x8x16, h100:64, ...")
    verb.add_argument("--mesh", default="fsdp=-1", help="as fsdp=16,expert=64; -1 fills")
    verb.add_argument("--rules", help="a table of zoo.sharding.RULES")
    verb.add_argument("--mode", choices=MODES, default="train")
    verb.add_argument("--batch", type=int, help="rows on all chips together")
    verb.add_argument("--length", type=int, help="tokens of a window, a prompt or a cache's row")
    verb.add_argument("--accumulate", type=int, help="microbatches of a training step")
    verb.add_argument("--remat", choices=REMATS, help="what is recomputed backward")
    verb.add_argument("--tokens", type=float, help="a budget to give chip-hours for, as 1e12")
    verb.add_argument("--search", action="store_true", help="rank meshes and batches")
    verb.add_argument("--arithmetic", action="store_true", help="do not compile")
    verb.add_argument("--plot", type=Path, help="write a picture to this PNG")
    verb.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Plans what the arguments say, and prints it.

    Raises:
        ValueError: something that does not exist, divide or fit together.
    """
    from zoo.plan import hardware, make_plan, picture, report

    topology = hardware.parse(args.topology)
    cfg, work, name = _from_file(args) if args.config else _from_model(args)
    changes = {k: getattr(args, k) for k in ("batch", "length", "accumulate", "remat")}
    work = dataclasses.replace(work, **{k: v for k, v in changes.items() if v is not None})
    if args.search:
        from zoo.plan.search import search

        plans = search(cfg, work, topology, args.rules, 0 if args.arithmetic else 3)
        report.ranking(plans)
        plan = plans[0]
    else:
        plan = make_plan(cfg, work, topology, args.mesh, args.rules, not args.arithmetic)
    report.show(plan, name, args.tokens)
    if args.plot is not None:
        picture.draw(plan, name, args.plot)


def _from_model(args: argparse.Namespace) -> tuple:
    from zoo.cli import find_config
    from zoo.plan import hardware
    from zoo.plan.workload import Workload

    if args.model is None:
        raise ValueError("name a model, or a file of train.py by --config")
    cfg = find_config(args.model)
    devices = hardware.parse(args.topology).devices
    length = min(4096, cfg.max_length)
    return cfg, Workload(args.mode, args.batch or devices, length), args.model


def _from_file(args: argparse.Namespace) -> tuple:
    """The model and the sizes of a training step from a file with `get_config`."""
    from zoo.plan.workload import Workload
    from zoo.training.run import find_config
    from zoo.training.settings import from_config

    path, _, variant = args.config.partition(":")
    found = importlib.util.spec_from_file_location("config_to_plan", path)
    if found is None or not Path(path).is_file():
        raise ValueError(f"--config={path} is no Python file with a get_config()")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    settings = from_config(module.get_config(*([variant] if variant else [])))
    work = Workload(
        args.mode, settings.data.batch, settings.data.window, settings.accumulate, settings.remat,
        optimizer=settings.optimizer, mtp_loss=settings.mtp_loss,
    )  # fmt: skip
    return find_config(settings), work, args.config
