"""One of several processes that serve a tiny model: a program that `test_together` starts.

    python -m tests.inference.together_child COORDINATOR PROCESSES PROCESS

The first prints the tokens of `REQUESTS`, which come one after the other, and of one given up.
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np

import zoo
from tests.examples import random_params
from zoo import hosts, sharding
from zoo.config import MLP, Attention, Config, Layer, Rope, Stack
from zoo.inference.engine import Request
from zoo.inference.together import Together

MODEL = zoo.Decoder(Config(96, 16, (Stack(2, (Layer(Attention(2, 2, 8, Rope(8)), MLP(24)),)),)))
REQUESTS = [
    Request([3, 14, 15], 8),
    Request([9, 26, 5, 35], 6, temperature=1.3, seed=7, logit_bias={3: -float("inf")}),
    Request([8, 9], 7, stop_tokens=(5,), logprobs=1),
]


def serve() -> tuple[list[list[int]], int]:
    """Texts, and how many tokens a request made that was given up after the first."""
    mesh = zoo.make_mesh("data=2,tensor=2")
    placed = sharding.shardings(MODEL.cfg, mesh)
    whole = made()
    params = jax.jit(lambda: jax.tree.map(jnp.asarray, whole), out_shardings=placed)()
    engine = Together(MODEL, params, slots=2, length=32, chunk=32, mesh=mesh)
    if not hosts.is_first():
        engine.follow()
        return [], 0
    given_up = engine.submit(Request([1, 2], 20))
    engine.step()
    given_up.cancel()
    tickets = []
    for request in REQUESTS:
        tickets.append(engine.submit(request))
        engine.step()
    while engine.step():
        pass
    engine.close()
    assert given_up.done
    return [[t.id for t in ticket.drain()] for ticket in tickets], len(given_up.drain())


def made() -> dict:
    """Parameters as numpy arrays, so that every process can hold them."""
    return jax.tree.map(np.asarray, random_params(MODEL))


def main(coordinator: str, processes: str, process: str) -> None:
    jax.config.update("jax_num_cpu_devices", 2)
    with hosts.one_fate():
        hosts.start(coordinator, int(processes), int(process))
        print("served", serve(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
