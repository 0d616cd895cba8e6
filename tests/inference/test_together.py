"""Two processes on loopback serve one model, and say what one says."""

import ast
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.inference.together_child import MODEL, REQUESTS, made
from tests.processes import ROOT, ends, free_address, said
from zoo import hosts
from zoo.inference.engine import Engine, Request
from zoo.inference.together import Together, _as_json


def test_two_processes_serve_one_model():
    command = [sys.executable, "-m", "tests.inference.together_child", free_address(), "2"]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env)
    processes = [subprocess.Popen([*command, str(i)], **pipes) for i in range(2)]
    engine = Engine(MODEL, made(), slots=2, length=32, chunk=32)
    want = [[token.id for token in text] for text in engine.run(REQUESTS)]
    outs = ends(processes)
    assert [p.returncode for p in processes] == [0, 0], [error[-2000:] for _, error in outs]
    texts, given_up = ast.literal_eval(said(outs[0][0], "served")[0])
    assert texts == want
    assert given_up == 2


def test_a_constraint_is_refused_since_others_cannot_ask_it():
    engine = Together(MODEL, made(), slots=1, length=32, chunk=32)
    with pytest.raises(ValueError, match="constraint has to be None: this engine has no restrict"):
        engine.submit(Request([1], constraint=object()))


def test_a_request_can_be_told_whatever_its_numbers_were():
    bias = {np.int32(3): -np.inf}
    request = Request(
        np.array([1, 2]), temperature=np.float32(0.5), top_k=np.int64(3), logit_bias=bias
    )
    told = json.loads(json.dumps(_as_json(request)))
    assert Request(**{**told, "logit_bias": dict(told["logit_bias"])}) == request


def test_who_is_asked_to_stop_has_all_know_after_an_idle_step():
    engine = Together(MODEL, made(), slots=1, length=32, chunk=32)
    engine.step()
    assert not engine.stopping
    engine.ask_to_stop()
    engine.step()
    assert engine.stopping


def test_a_step_that_fails_is_the_last():
    class Alone(Together):
        def _leave_cancelled(self):
            raise RuntimeError("a peer is gone")

    engine = Alone(MODEL, made(), slots=1, length=32, chunk=32)
    with pytest.raises(RuntimeError, match=r"^a peer is gone"):
        engine.step()
    with pytest.raises(RuntimeError, match="lost each other: a peer is gone"):
        engine.step()


def test_one_process_tells_itself():
    assert hosts.tell(b"news") == b"news"
