"""Dense training step: 34M parameters, 4 x 256 tokens, float32, AdamW, against transformers.

python benchmarks/train_step.py
"""

from __future__ import annotations

import harness
import pairs
import steps


def main() -> None:
    args = harness.arguments(__doc__, rounds=15, batch=4, length=256)
    report = harness.Report("train_step", "Dense training step, float32", args.rounds)
    model, params, hf = pairs.pair(pairs.DENSE)
    tokens = pairs.tokens(args.batch, args.length)
    variants = {"zoo": steps.ours(model, params, tokens), "transformers": steps.theirs(hf, tokens)}
    pairs.agree(*(step() for step in variants.values()))
    seconds = harness.alternate(variants, args.rounds)
    facts = dict(parameters=pairs.size(params), tokens=tokens.size)
    case = f"{args.batch} x {args.length} tokens"
    report.add(harness.compare(case, seconds, "zoo", "transformers", **facts))
    report.save()


if __name__ == "__main__":
    main()
