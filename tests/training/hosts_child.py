"""One of several processes that train a tiny Llama: a program that `test_hosts` starts and kills.

    python -m tests.training.hosts_child WORKDIR STEPS PAUSE COORDINATOR PROCESSES PROCESS

Every process prints "step N" after step N, and the names of files that it writes; the first also
prints losses. Before step PAUSE they wait for a line on standard input.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zoo
from zoo import hosts, sharding
from zoo.checkpoint import Checkpoints
from zoo.hf import save
from zoo.training.settings import Balance
from zoo.training.step import TrainState, make_step

LLAMA = dict(
    model_type="llama", vocab_size=96, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip
ROWS, LENGTH, EVERY = 4, 16, 2


def run(workdir: Path, steps: int, pause: int | None = None) -> dict[int, float]:
    """Losses by step, from the last checkpoint on; the end is exported to workdir/hf."""
    cfg = zoo.config_from_hf(LLAMA)
    model, optimizer = zoo.Decoder(cfg), optax.adam(1e-2)
    mesh = zoo.make_mesh("data=2,fsdp=2", jax.devices()[:4])
    checkpoints, losses = Checkpoints(workdir), {}
    state = start(model, optimizer, mesh)
    if checkpoints.latest is not None:
        state = checkpoints.restore(state)[0]
    train = make_step(model, optimizer, Balance())
    with sharding.use(mesh):
        for step in range(int(state.step) + 1, steps + 1):
            if step == pause:
                print("paused", flush=True)
                sys.stdin.readline()
            state, metrics = train(state, batch(step, mesh))
            losses[step] = float(metrics["loss"])
            if step % EVERY == 0:
                checkpoints.save(state, {})
                checkpoints.wait()
    checkpoints.close()
    save.save_hf(workdir / "hf", cfg, state.params, max_shard_bytes=6000)
    return losses


def start(model: zoo.Decoder, optimizer, mesh) -> TrainState:
    params = sharding.init(model, jax.random.key(0), mesh)["params"]
    placed = sharding.shardings(model.cfg, mesh)["params"]
    moments = sharding.shardings_like(jax.eval_shape(optimizer.init, params), params, placed)
    opt_state = jax.jit(optimizer.init, out_shardings=moments)(params)
    whole = jax.NamedSharding(mesh, jax.sharding.PartitionSpec())
    fresh = jax.jit(lambda: (jnp.zeros((), jnp.int32), jax.random.key(1)), out_shardings=whole)
    step, rng = fresh()
    return TrainState(step, {"params": params}, opt_state, rng)


def batch(step: int, mesh) -> dict[str, jax.Array]:
    """The rows of a step, of which every process makes those that its devices hold."""
    tokens = np.random.default_rng(step).integers(0, 48, (ROWS, LENGTH + 1), np.int32)
    ids = np.ones((ROWS, LENGTH), np.int32)
    whole = dict(
        tokens=tokens[:, :-1], targets=tokens[:, 1:], segment_ids=ids, positions=ids.cumsum(1) - 1
    )
    where = sharding.batch_sharding(mesh, None, ROWS)
    return {
        name: jax.make_array_from_callback(x.shape, where, lambda at, x=x: x[at])
        for name, x in whole.items()
    }


def main(workdir: str, steps: str, pause: str, *where: str) -> None:
    coordinator, processes, process = where
    jax.config.update("jax_num_cpu_devices", 2)
    write = save.write

    def told(path, *args):
        print("wrote", path.name, flush=True)
        write(path, *args)

    save.write = told
    with hosts.one_fate():
        hosts.start(coordinator, int(processes), int(process))
        losses = run(Path(workdir), int(steps), int(pause))
        print("losses", losses, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
