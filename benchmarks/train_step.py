"""Dense training step: 34M parameters, 4 x 256 tokens, float32, AdamW, against transformers.

python benchmarks/train_step.py
"""

from __future__ import annotations

import harness
import pairs
import steps

ABOUT = dict(model=pairs.DENSE, aim=1.1, both="float32, clipping, AdamW, sdpa in torch")


def main() -> None:
    args = harness.arguments(__doc__, rounds=15, batch=4, length=256, reuse=1)
    about = ABOUT | harness.settle_memory(args.reuse)
    before, rows = harness.machine(), []
    model, params, hf = pairs.pair(pairs.DENSE)
    tokens = pairs.tokens(args.batch, args.length)
    variants = {"zoo": steps.ours(model, params, tokens), "transformers": steps.theirs(hf, tokens)}
    pairs.agree(*(step() for step in variants.values()))
    seconds = harness.alternate(variants, args.rounds)
    facts = dict(parameters=pairs.size(params), tokens=tokens.size)
    case = f"{args.batch} x {args.length} tokens"
    rows.append(harness.compare(case, seconds, **facts))
    harness.save("train_step", args.out, before, rows, about)


if __name__ == "__main__":
    main()
