"""train.py on one of several hosts, for `test_hosts` to watch, hold and kill.

    python -m tests.training.hosts_child PAUSE --config=... --coordinator=... --process=...

It is train.py with its own flags. It also prints the names of the files of weights that it writes,
which are small; gives up sooner on one that is gone; and before step PAUSE says so and waits for a
line on standard input.
"""

from __future__ import annotations

import functools
import runpy
import sys
from pathlib import Path

from zoo import hosts
from zoo.hf import save
from zoo.training import finish, loop

SHARD_BYTES, TIMEOUT = 6000, 20


def main(pause: int) -> None:
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
    runpy.run_path(str(Path(__file__).parents[2] / "train.py"), run_name="__main__")


if __name__ == "__main__":
    main(int(sys.argv.pop(1)))
