"""Where a Hugging Face folder is written: what may be there, and how a new one takes its place.

It is written beside its destination under a temporary name and takes its place in the end, so a
save that is killed, or that fills the disk, loses nothing that was there. An empty folder is filled
instead: somebody may be in it, or a disk be mounted there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from zoo import hosts
from zoo.hf.source import CONFIG, GENERATION, INDEX, NAMED, TOKENIZER, some

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(OSError):
    """There is no room for a folder; it says so without the number of the system's error."""

    def __str__(self) -> str:
        return self.strerror


def check_destination(out_dir: str | os.PathLike) -> Path:
    """Where `save_hf` would write, which is known before there is anything to write.

    Raises:
        ValueError: `out_dir` holds something else than a checkpoint, or cannot be replaced.
    """
    out = Path(out_dir).expanduser().resolve()  # a link stays one: what it names is written
    if not out.exists() or _is_empty(out):
        return out
    if not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder")
    entries = list(out.iterdir())
    if not (out / CONFIG).exists():
        raise ValueError(f"{out} is not empty and no checkpoint; name another folder")
    if folders := [p.name for p in entries if p.is_dir() and not _is_of_templates(p)]:
        raise ValueError(f"{out} holds folders ({some(sorted(folders))}); name another one")
    if out.samefile(os.curdir):
        raise ValueError(
            f"{out} is the current directory, which cannot be replaced: save from another one, or "
            "name a new folder"
        )
    if out.is_mount():
        raise ValueError(f"{out} is where a disk is mounted: name a folder in it, or empty it")
    return out


def _is_empty(out: Path) -> bool:
    """But for what a save that was killed has left."""
    return out.is_dir() and all(_is_left(path) for path in out.iterdir())


def _is_left(path: Path) -> bool:
    return path.name.startswith(f".{path.parent.name}.") and path.suffix == ".tmp"


def _is_of_templates(folder: Path) -> bool:
    return folder.name == NAMED and all(path.suffix == ".jinja" for path in folder.iterdir())


def check_space(out: Path, need: int) -> None:
    """Raises DiskFullError where so many bytes cannot fit."""
    parent = next(p for p in (out, *out.parents) if p.exists())
    free = shutil.disk_usage(parent).free
    if need > free:
        raise DiskFullError(
            errno.ENOSPC,
            f"{out} needs {need} bytes and {parent} has {free} free; nothing was written. Free "
            "some space, or name a folder on another disk",
        )


@contextlib.contextmanager
def taking_place(out: Path, need: int) -> Iterator[Path]:
    """Gives a new folder, whose files are those of `out` when the block ends well.

    Args:
        out: as `check_destination` found it.
        need: bytes that will be written.

    Raises:
        DiskFullError: they did not fit.
    """
    empty = bool(hosts.agree(int(_is_empty(out))))
    name = f".{out.name}.{hosts.agree(secrets.randbits(31)):08x}.tmp"
    temporary = out / name if empty else out.with_name(name)
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        yield temporary
        if hosts.is_first():
            (_fill if empty else _replace)(out, temporary)
        hosts.meet(f"{out.name}: folder")
    except OSError as e:
        if e.errno in FULL:
            raise DiskFullError(
                e.errno,
                f"the disk is full: {out} needs {need} bytes; what was there before is untouched. "
                "Free some space and save again",
            ) from e
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fill(out: Path, temporary: Path) -> None:
    """Moves all files into a folder, and config.json last, without which it is no checkpoint."""
    for path in sorted(temporary.iterdir(), key=lambda path: path.name == CONFIG):
        os.rename(path, out / path.name)
    for path in filter(_is_left, list(out.iterdir())):
        shutil.rmtree(path, ignore_errors=True)


def _replace(out: Path, temporary: Path) -> None:
    _keep_foreign_files(out, temporary)
    if not out.exists():
        os.rename(temporary, out)
        return
    old = out.with_name(f".{out.name}.{secrets.token_hex(4)}.old")
    os.rename(out, old)
    try:
        os.rename(temporary, out)
    except OSError:
        os.rename(old, out)
        raise
    with contextlib.suppress(OSError):
        shutil.rmtree(old)


def _keep_foreign_files(out: Path, temporary: Path) -> None:
    """Moves along what somebody else put into the older checkpoint, a README for one."""
    for path in out.iterdir() if out.exists() else ():
        ours = path.name in (CONFIG, GENERATION, INDEX, NAMED, *TOKENIZER)
        if not ours and path.suffix != ".safetensors" and not (temporary / path.name).exists():
            shutil.copy2(path, temporary / path.name)
