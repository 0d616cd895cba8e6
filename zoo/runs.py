"""The folder of a run beside its checkpoints: what it is, and its tokenizer.

A working directory has, beside what `zoo.checkpoint` writes:

    run.json        what the run is: model, settings, tokenizer and corpus by sha256
    run.lock        who trains it: a file that is locked for as long
    tokenizer/      the tokenizer, as Hugging Face keeps it
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

RUN_FILE = "run.json"
LOCK = "run.lock"
TOKENIZER = "tokenizer"


def copy_tokenizer(
    source: str | os.PathLike, target: str | os.PathLike, ids: Mapping[str, int] | None = None
) -> None:
    """Copies what belongs to a tokenizer out of a folder, which may hold a whole model.

    Where the folder has no generation_config.json, `ids` are what it says.
    """
    from zoo.hf.source import GENERATION, copy_texts, json_bytes

    target = Path(target)
    target.mkdir(parents=True, exist_ok=True)
    copy_texts(Path(source), target)
    if ids is not None and not (target / GENERATION).exists():
        (target / GENERATION).write_bytes(json_bytes(dict(ids)))


def check_new(workdir: str | os.PathLike) -> Path:
    """Raises ValueError unless a run can be made here: nothing is, or an empty folder."""
    workdir = Path(workdir)
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"{workdir} is a file: name a new folder")
    if workdir.is_dir() and any(workdir.iterdir()):
        raise ValueError(f"{workdir} is not empty: name a new folder")
    return workdir


def claim(workdir: str | os.PathLike) -> TextIO:
    """A file that keeps other processes from training the same run while it is open.

    Raises:
        ValueError: one does already.
    """
    held = open(Path(workdir) / LOCK, "a+")  # noqa: SIM115
    if fcntl is None:
        return held
    try:
        fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # as systems differ
        held.seek(0)
        raise ValueError(
            f"{workdir} is being trained by another process ({held.read().strip()}): wait for it, "
            "stop it, or choose another --workdir"
        ) from None
    except OSError:  # a file system that knows no locks
        return held
    with contextlib.suppress(OSError):  # a full disk, of which others speak
        held.truncate(0)
        held.write(f"pid {os.getpid()}")
        held.flush()
    return held


def is_run(path: str | os.PathLike) -> bool:
    """Whether a folder is the working directory of a run."""
    return (Path(path) / RUN_FILE).is_file()


def read_run(workdir: str | os.PathLike) -> dict:
    """What `run.json` says.

    Raises:
        ValueError: there is none, or it is not JSON.
    """
    path = Path(workdir) / RUN_FILE
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{workdir} is no run of train.py: it has no {RUN_FILE}") from None
    except json.JSONDecodeError as e:
        raise ValueError(
            f"{path} is not JSON ({e}): restore it, or start in a new workdir"
        ) from None


def write_run(workdir: str | os.PathLike, record: dict) -> None:
    """Writes `run.json`, whole or not at all."""
    path = Path(workdir) / RUN_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    temporary.replace(path)


def check_run(workdir: str | os.PathLike, record: dict, free: Sequence[str] = ()) -> None:
    """Refuses to continue a run as another one.

    Args:
        workdir: of the run that is there.
        record: what `run.json` would say of the run that wants to continue it.
        free: names, dotted, of fields that may differ; they cover what is below them.

    Raises:
        ValueError: anything else differs; every difference is named with both values.
    """
    before, now = _flat(read_run(workdir)), _flat(json.loads(json.dumps(record)))
    names = [n for n in sorted(before.keys() | now.keys()) if before.get(n) != now.get(n)]
    names = [n for n in names if not any(n == f or n.startswith(f + ".") for f in free)]
    if names:
        lines = (f"  {n}: {before.get(n)!r} there, {now.get(n)!r} now" for n in names[:20])
        raise ValueError(
            f"{workdir} holds a run of another configuration:\n" + "\n".join(lines) + "\nChoose "
            "another --workdir, or put these values back to continue that run. To start a new run "
            f"from its weights, add --config.init_from={workdir}"
        )


def _flat(tree: Any, where: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {where: tree}
    return {
        name: leaf
        for key, value in tree.items()
        for name, leaf in _flat(value, f"{where}.{key}" if where else key).items()
    }
