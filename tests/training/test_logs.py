import contextlib
import signal

import pytest

from zoo.training.logs import METRICS, MetricsWriter, read_metrics
from zoo.training.plots import plot_expert_load, plot_losses
from zoo.training.signals import StopRequest


def test_a_resumed_file_forgets_what_was_not_saved(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    for step in (1, 2, 3):
        writer.write({"step": step, "loss": 1.0 / step})
    writer.close()
    with open(tmp_path / METRICS, "a") as file:
        file.write('{"step": 4, "lo')
    writer = MetricsWriter(tmp_path, 2)
    writer.write({"step": 3, "loss": 9.0})
    writer.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(1, 1), (2, 0.5), (3, 9)]


def test_first_signal_asks_and_second_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        assert stop.signal is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal is signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@contextlib.contextmanager
def hangup(handler):
    """With this handler of SIGHUP, whatever those who started the tests have made of it."""
    before = signal.signal(signal.SIGHUP, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_is_answered_and_the_end_of_a_terminal_asks_too(capfd):
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert "stopping after this step" in capfd.readouterr().err
    with hangup(signal.SIG_DFL), StopRequest() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.signal is signal.SIGHUP


def test_a_run_that_shall_outlive_its_terminal_does():
    """As nohup starts it."""
    with hangup(signal.SIG_IGN), StopRequest() as stop:
        signal.raise_signal(signal.SIGHUP)
    assert stop.signal is None


@pytest.mark.parametrize("steps", [0, 1, 300])
def test_plots_of_any_length_are_pngs(tmp_path, steps):
    records = [{"step": s, "loss": 5 / (s + 1)} for s in range(steps)]
    records += [{"step": s, "validation_loss": 5.0} for s in range(0, steps, 10)]
    plot_losses(tmp_path / "loss.png", records)
    plot_expert_load(tmp_path / "load.png", {1: [1.0] * (steps + 1), 4: [0.5, 1.5]})
    for name in ("loss.png", "load.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
