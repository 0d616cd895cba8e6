"""train.py, alone or on one of several hosts, for tests to watch, hold and kill.

    python -m tests.training.hosts_child PAUSE RUNS --config=... --coordinator=... --process=...

It is train.py with its own flags. It also prints the names of the files of weights that it writes,
which are small; gives up sooner on one that is gone; and before step PAUSE says so and waits for a
line on standard input. With RUNS = 2 another run follows, of adapters on what the first exported.
"""

from __future__ import annotations

import functools
import runpy
import sys
from pathlib import Path

from absl import flags

from tests.training import hosts_config
from zoo import hosts
from zoo.hf import save
from zoo.training import finish, loop
from zoo.training.settings import from_config

SHARD_BYTES, TIMEOUT = 6000, 20


def main(pause: int, runs: int) -> None:
    write, advance = save.write, loop._Loop.advance

    def told(path: Path, *args) -> None:
        print("wrote", path.name, flush=True)
        write(path, *args)

    def held(self: loop._Loop) -> None:
        if self.step + 1 == pause:
            print("paused", flush=True)
            sys.stdin.readline()
        advance(self)

    save.write, loop._Loop.advance, hosts.TIMEOUT = told, held, TIMEOUT
    finish.save_hf = functools.partial(save.save_hf, max_shard_bytes=SHARD_BYTES)
    try:
        runpy.run_path(str(Path(__file__).parents[2] / "train.py"), run_name="__main__")
    except SystemExit as e:
        if e.code or runs == 1:
            raise
    first = Path(flags.FLAGS.workdir)
    with hosts.one_fate():
        settings = from_config(hosts_config.adapters(first / "hf", "data=2,fsdp=2"))
        loop.run(settings, first.with_name("adapters"), flags.FLAGS.cache_dir)


if __name__ == "__main__":
    main(int(sys.argv.pop(1)), int(sys.argv.pop(1)))
