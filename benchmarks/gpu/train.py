"""Training steps on a GPU in bfloat16, float32 masters and AdamW, against transformers.

    PYTHONPATH=benchmarks python benchmarks/gpu/train.py
    PYTHONPATH=benchmarks python benchmarks/gpu/train.py --tiny 1 --rounds 1   # to see that it runs

Both run on the same GPU in turn. `mfu` is of the data sheet's peak; aims: 50 % dense, 35 % sparse.
"""

from __future__ import annotations

import harness
import jax
import pair
import pairs
import steps

from zoo.training.throughput import flops_per_token, peak_flops

ABOUT = dict(
    models=pair.FULL, aim={"dense": 0.5, "sparse": 0.35}, both="bfloat16 in float32 masters"
)


def main() -> None:
    args = harness.arguments(
        __doc__, rounds=15, kinds=["dense", "sparse"], rows=8, length=2048, tiny=0
    )
    before, rows = harness.machine(), []
    before["device"] = jax.devices()[0].device_kind
    for kind in args.kinds:
        model, params, theirs = pair.make(kind, bool(args.tiny), "bfloat16")
        tokens = pairs.tokens(args.rows, args.length)
        variants = {
            "zoo": steps.ours(model, params, tokens),
            "transformers": _autocast(steps.theirs(theirs, tokens, pair.device())),
        }
        pairs.agree(*(step() for step in variants.values()), bound=2e-2)
        seconds = harness.alternate(variants, args.rounds)
        row = harness.compare(kind, seconds, parameters=pairs.size(params), tokens=tokens.size)
        needed = tokens.size * flops_per_token(model.cfg, args.length)
        if (peak := peak_flops(jax.devices()[0])) is not None:
            row["mfu"] = round(needed / row["zoo_s"] / peak, 3)
            row["transformers_mfu"] = round(needed / row["transformers_s"] / peak, 3)
        rows.append(row)
    harness.save("gpu_train", args.out, before, rows, ABOUT)


def _autocast(step):
    """torch's step with products in bfloat16."""
    import torch

    def run() -> float:
        with torch.autocast(pair.device(), dtype=torch.bfloat16):
            return step()

    return run


if __name__ == "__main__":
    main()
