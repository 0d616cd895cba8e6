"""What it costs to begin: importing, and compiling cold and from the persistent cache.

    python benchmarks/startup.py

Imports in fresh processes; aim: `import zoo` below 1.5 s. Compilation is of the dense training
step's forward pass and gradient, with layers scanned.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import harness

COMPILE = """
import json, sys, time, jax, jax.numpy as jnp, zoo
from pairs import DENSE
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
from zoo.describe import shapes
cfg = zoo.config_from_hf(DENSE | {"num_hidden_layers": int(sys.argv[2])})
model, ids = zoo.Decoder(cfg), jax.ShapeDtypeStruct((4, 256), jnp.int32)
step = jax.jit(jax.grad(lambda p, t: model.apply(p, t).logits.var()))
start = time.perf_counter()
lowered = step.lower(shapes(cfg), ids)
traced = time.perf_counter()
lowered.compile()
print(json.dumps([traced - start, time.perf_counter() - traced]))
"""


def main() -> None:
    args = harness.arguments(__doc__, rounds=5)
    before, rows = harness.machine(), []
    for module in ("jax", "flax.linen", "zoo", "zoo.decoder", "zoo.hf.load"):
        code = (
            f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
        )
        spent = [float(run(code)) for _ in range(args.rounds + 1)][1:]
        rows.append({"case": f"import {module}", "seconds": statistics.median(spent)})
    for layers in (8, 32):
        with tempfile.TemporaryDirectory() as cache:
            cold, warm = (json.loads(run(COMPILE, cache, str(layers))) for _ in range(2))
        rows.append({"case": f"trace gradient, {layers} layers", "seconds": cold[0]})
        rows.append({"case": f"compile cold, {layers} layers", "seconds": cold[1]})
        rows.append({"case": f"compile warm, {layers} layers", "seconds": warm[1]})
    harness.save("startup", args.out, before, rows, {"aim_import_seconds": 1.5})


def run(code: str, *argv: str) -> str:
    """What a fresh process prints last."""
    done = subprocess.run(
        [sys.executable, "-c", code, *argv],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout.splitlines()[-1]


if __name__ == "__main__":
    main()
