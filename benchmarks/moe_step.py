"""Whole-model mixture-of-experts training step at 8, 32 and 128 experts, two per token, float32.

    python benchmarks/moe_step.py --experts 8 32 128

Against transformers with its `grouped_mm` experts. Work per token does not depend on the number of
experts, but the optimizer's does: it moves every parameter.
"""

from __future__ import annotations

import harness
import pairs
import steps

ABOUT = dict(model=pairs.sparse(8), aim=1.0, both="float32, clipping, AdamW", experts="grouped_mm")


def main() -> None:
    args = harness.arguments(__doc__, rounds=9, experts=[8, 32, 128], batch=4, length=256, reuse=1)
    about = ABOUT | harness.settle_memory(args.reuse)
    before, rows = harness.machine(), []
    tokens = pairs.tokens(args.batch, args.length)
    for experts in args.experts:
        model, params, hf = pairs.pair(pairs.sparse(experts), experts_implementation="grouped_mm")
        variants = {
            "zoo": steps.ours(model, params, tokens),
            "transformers": steps.theirs(hf, tokens),
        }
        pairs.agree(*(step() for step in variants.values()))
        seconds = harness.alternate(variants, args.rounds)
        facts = dict(parameters=pairs.size(params), tokens=tokens.size)
        rows.append(harness.compare(f"{experts} experts", seconds, **facts))
    harness.save("moe_step", args.out, before, rows, about)


if __name__ == "__main__":
    main()
