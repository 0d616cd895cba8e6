"""The loop: batches in, steps, evaluation, checkpoints, metrics; then the end of a run.

Everything that decides the outcome (parameters, optimizer, key, place in the data) is in a
checkpoint, so that the same command goes on where it stopped, bit for bit.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from signal import Signals

import jax

from zoo import hosts
from zoo.data import train_batches
from zoo.training.finish import finish, write_samples
from zoo.training.logs import Display, MetricsWriter
from zoo.training.optimizer import learning_rate
from zoo.training.run import Run, prepare_run
from zoo.training.settings import Settings
from zoo.training.signals import StopRequest
from zoo.training.step import make_step
from zoo.training.throughput import Speed, flops_per_token, peak_flops


class NotFinite(RuntimeError):
    """The loss or the gradient became NaN or infinite; the last good checkpoint stays."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: after which step, by which signal if any, and what `finish` found if not.

    SIGPIPE is that nobody reads what the run says.
    """

    step: int
    signal: Signals | None
    summary: dict | None


def run(
    settings: Settings, workdir: str | os.PathLike, cache_dir: str | os.PathLike | None = None
) -> Outcome:
    """Trains from the start or from where `workdir` stands, and finishes the run.

    Args:
        settings: the run.
        workdir: where it keeps everything.
        cache_dir: where prepared data is kept; `zoo.data.default_cache_dir()` if None.

    Raises:
        ValueError: the settings do not fit together, or `workdir` holds another run.
        NotFinite: the loss left the finite numbers.
        SaveError: a checkpoint could not be written.
    """
    prepared = prepare_run(settings, workdir, cache_dir)
    try:
        signal = train(prepared)
    finally:
        prepared.checkpoints.close()
    return Outcome(prepared.step, signal, None if signal else finish(prepared))


def train(run: Run) -> Signals | None:
    """Steps until the last one or a signal; `run.state` is the outcome, and it is saved.

    Returns:
        The signal that stopped it early, or None.

    Raises:
        NotFinite: the loss left the finite numbers.
        SaveError: a checkpoint could not be written.
    """
    steps = run.settings.steps
    if run.step >= steps:
        return None
    with (
        StopRequest() as stop,
        Display(steps, run.step, stop.unread) as display,
        run.layout.use(),
    ):
        loop = _Loop(run, display)
        try:
            while loop.step < steps and not stop.is_asked(loop.step):
                loop.advance()
            loop.save()
            run.checkpoints.wait()
        finally:
            loop.close()
    return stop.signal if loop.step < steps else None


class _Loop:
    """The moving parts: compiled programs, the place in the data, and the step not yet read back.

    `step` counts on the host, so that nothing waits for the device; metrics are read one step late,
    while the next step runs.
    """

    def __init__(self, run: Run, display: Display):
        settings, data = run.settings, run.data
        self.run, self.step, self._display = run, run.step, display
        self._step = make_step(
            run.model, run.optimizer, settings.balance, settings.accumulate, settings.mtp_loss,
            run.placed,
        )  # fmt: skip
        self._batches = train_batches(data, **hosts.share())
        if run.extra is not None:
            self._batches.set_state(run.extra["data"])
        self._writer = MetricsWriter(run.workdir, run.step)
        self._flops = flops_per_token(run.config, data.window, frozen=settings.lora is not None)
        mesh = run.layout.mesh
        self._peak = mesh.size * peak if (peak := peak_flops(mesh.devices.flat[0])) else None
        self._pending: tuple[int, dict] | None = None
        self._batch: dict | None = None
        self._saved = run.step
        self._speed = Speed()

    def advance(self) -> None:
        """One step, and what is due after it."""
        self._batch = next(self._batches)
        placed = self.run.layout.place(self._batch)
        self.run.state, metrics = self._step(self.run.state, placed)
        self._read_back()
        self.step += 1
        self._pending = (self.step, metrics)
        settings, loss = self.run.settings, None
        last = self.step == settings.steps
        if last or self.step % settings.evaluation.every == 0:
            loss = self._validate()
        if last or self.step % settings.checkpoint.every == 0:
            self.save(loss)

    def save(self, loss: float | None = None) -> None:
        """Saves this step unless it is saved; never a state whose loss is not finite."""
        self._read_back()
        if self.step == self._saved:
            return
        with self._speed.paused():
            if loss is None:
                self._require_finite(self._loss_now(), "after the update")
            self.run.checkpoints.save(self.run.state, {"data": self._batches.get_state()}, loss)
        self._saved = self.step

    def close(self) -> None:
        self._writer.close()

    def _read_back(self) -> None:
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        metrics = {name: float(x) for name, x in jax.device_get(metrics).items()}
        self._require_finite(metrics["loss"], "of the batch", step)
        self._require_finite(metrics["grad_norm"], "is the norm of the gradient", step)
        self._speed.add(metrics["tokens"])
        settings = self.run.settings
        if step % settings.log_every and step != settings.steps:
            return
        speed = self._speed.take()
        mfu = speed * self._flops / self._peak if speed and self._peak else None
        rate = float(learning_rate(settings.optimizer, settings.steps, step))
        record = {
            "step": step,
            "learning_rate": float(f"{rate:.6g}"),  # float32 has no more digits.
            **metrics,
            "tokens_per_second": speed and round(speed, 1),
            "mfu": mfu and round(mfu, 4),
        }
        self._writer.write(record)
        self._display.update(step, metrics["loss"], speed, mfu)

    def _validate(self) -> float:
        self._read_back()
        run, spec = self.run, self.run.settings.evaluation
        with self._speed.paused():
            report = run.evaluate(spec.split, spec.batches)
            self._require_finite(report.loss, f"on {spec.split}")
            found = {"loss": report.loss, "bits_per_byte": report.bits_per_byte}
            found = {f"validation_{name}": value for name, value in found.items()}
            self._writer.write({"step": self.step, **found})
            self._display.validated(self.step, report.loss)
            if run.settings.samples.often and self.step < run.settings.steps:
                write_samples(run, run.workdir / "samples" / f"{self.step}.txt")
        return report.loss

    def _loss_now(self) -> float:
        rows = {
            name: x[: self.run.eval_rows // jax.process_count()] for name, x in self._batch.items()
        }
        placed = self.run.layout.place(rows)
        return float(self.run.eval_step(self.run.state.params, placed)["nll"])

    def _require_finite(self, value: float, what: str, step: int | None = None) -> None:
        if math.isfinite(value):
            return
        run = self.run
        run.checkpoints.wait()
        last = run.checkpoints.latest
        kept = "No checkpoint was saved yet." if last is None else f"Step {last} is saved and good."
        raise NotFinite(
            f"step {step or self.step}: {value} {what}; training stops and does not save this. "
            f"{kept} Try a lower optimizer.learning_rate, a longer optimizer.warmup or "
            f"optimizer.clip, in another --workdir"
            + (f", from these weights with --config.init_from={run.workdir}" if last else "")
        )
