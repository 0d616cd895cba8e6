"""What a run tells while it works: a line or a progress bar, metrics.jsonl, and TensorBoard."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from zoo import hosts
from zoo.pipes import Console, Spared

METRICS = "metrics.jsonl"

_QUIET_SECONDS = 10.0
"""Where there is no terminal, a line at most this often."""


class MetricsWriter:
    """Appends records to metrics.jsonl, and to TensorBoard where tensorboardX is installed.

    Of several processes the first writes.

    A record is a flat dict with "step". What a run that stopped without saving wrote past its last
    checkpoint is dropped first, so that a resumed file reads like an uninterrupted one.
    """

    def __init__(self, workdir: str | os.PathLike, step: int):
        self._file = self._board = None
        if not hosts.is_first():
            return
        path = Path(workdir) / METRICS
        kept = [r for r in read_metrics(workdir) if r["step"] <= step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(r) + "\n" for r in kept))
        temporary.replace(path)
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 (closed by close)
        if importlib.util.find_spec("tensorboardX"):
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=step + 1)

    def write(self, record: dict) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
        if self._board is not None:
            for name, value in record.items():
                if name != "step" and value is not None:
                    self._board.add_scalar(name, value, record["step"])

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(workdir: str | os.PathLike) -> list[dict]:
    """The records of metrics.jsonl; a last line that was cut off is left out."""
    path, records = Path(workdir) / METRICS, []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class Display:
    """A progress bar on a terminal, else a line every few seconds; on stderr.

    Of several processes the first shows it. What cannot be written does not stop a run: `unread` is
    called where that is because nobody reads it.
    """

    def __init__(self, steps: int, done: int, unread: Callable[[], None] = lambda: None):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._console = Console(
            file=Spared(sys.stderr, unread), highlight=False, soft_wrap=True,
            quiet=not hosts.is_first(),
        )  # fmt: skip
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps, completed=done, text="compiling")
        self._steps, self._first, self._begin = steps, None, 0.0
        self._last_line, self._valid = 0.0, ""

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *error) -> None:
        self._bar.stop()

    def update(self, step: int, loss: float, speed: float | None, mfu: float | None) -> None:
        """Shows a step that is done; the time left is judged by the steps since the second."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._begin = step, now
        parts = [f"loss {loss:.3f}{self._valid}"]
        if speed is not None:
            parts.append(f"{speed:,.0f} tokens/s")
        if mfu is not None:
            parts.append(f"MFU {mfu:.1%}")
        if step > self._first:
            left = (now - self._begin) / (step - self._first) * (self._steps - step)
            parts.append(f"{_clock(left)} left")
        text = " · ".join(parts)
        self._bar.update(self._task, completed=step, text=text)
        due = now - self._last_line > _QUIET_SECONDS or step == self._steps
        if not self._console.is_terminal and due:
            self._last_line = now
            self.say(f"step {step}/{self._steps} · {text}")

    def validated(self, step: int, loss: float) -> None:
        """Shows a validation loss, from now on beside the training loss."""
        self._valid = f" (validation {loss:.3f})"
        self.say(f"step {step}: validation loss {loss:.4f}")

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(text, markup=False)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
