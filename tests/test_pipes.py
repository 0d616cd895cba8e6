"""Commands end without a word where nobody reads what they write."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from zoo import cli
from zoo.pipes import Spared, ends_with_reader

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("ends", "error"),
    [
        (lambda: None, "141"),
        (lambda: sys.exit(0), "141"),
        (lambda: sys.stdout.flush(), "141"),
        (lambda: sys.exit(2), "2"),
        (lambda: signal.default_int_handler(signal.SIGINT, None), "130"),
        (lambda: {}["mistake"], "mistake"),
    ],
    ids=["returns", "exits", "writes", "fails", "interrupted", "raises"],
)
def test_what_a_command_ends_with(ends, error, unread, monkeypatch):
    monkeypatch.setattr(sys, "stdout", unread)
    print("a line")
    with pytest.raises((SystemExit, KeyError), match=error), ends_with_reader():
        ends()
    print("another goes nowhere", flush=True)


def test_work_goes_on_where_nothing_can_be_written(unread):
    """Of a pipe it is told; of a full disk it may become better."""
    told = []
    file = Spared(unread, lambda: told.append("unread"))
    for _ in range(2):
        print("a line", file=file, flush=True)
    assert told == ["unread"]
    with open("/dev/full", "w", buffering=1) as full:
        print("a line", file=Spared(full, lambda: told.append("full")), flush=True)
        os.dup2(unread.fileno(), full.fileno())  # What is left can be written when it is closed.
    assert told == ["unread"]


@pytest.mark.parametrize("verb", [["list", "qwen3-0.6b"], ["show", "qwen3-0.6b"]])
def test_verbs_end_quietly(verb, unread, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", unread)
    with pytest.raises(SystemExit, match="141"):
        cli.main(verb)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("script", "flag"), [("eval.py", "--help"), ("train.py", "--config=no")])
def test_scripts_end_quietly(script, flag, unread):
    """Also where what they say is an error, and goes to the same pipe."""
    stderr = subprocess.PIPE if flag == "--help" else unread
    done = subprocess.run([sys.executable, script, flag], stdout=unread, stderr=stderr, cwd=ROOT)
    assert done.returncode == 141
    assert not done.stderr
