"""Two processes on loopback serve one model, and say what one says."""

import ast
import os
import subprocess
import sys

import pytest

from tests.inference.together_child import MODEL, REQUESTS, made
from tests.training.test_hosts import ROOT, free_address, said
from zoo import hosts
from zoo.inference.engine import Engine, Request
from zoo.inference.together import Together


def test_two_processes_serve_one_model():
    command = [sys.executable, "-m", "tests.inference.together_child", free_address(), "2"]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env)
    processes = [subprocess.Popen([*command, str(i)], **pipes) for i in range(2)]
    engine = Engine(MODEL, made(), slots=2, length=32, chunk=32)
    want = [[token.id for token in text] for text in engine.run(REQUESTS)]
    ends = [process.communicate(timeout=300) for process in processes]
    assert [p.returncode for p in processes] == [0, 0], [error[-2000:] for _, error in ends]
    texts, given_up = ast.literal_eval(said(ends[0][0], "served")[0])
    assert texts == want
    assert given_up == 2


def test_a_constraint_is_refused_since_others_cannot_ask_it():
    engine = Together(MODEL, made(), slots=1, length=32, chunk=32)
    with pytest.raises(ValueError, match="constraint has to be None"):
        engine.submit(Request([1], constraint=object()))


def test_one_process_tells_itself():
    assert hosts.tell(b"news") == b"news"
