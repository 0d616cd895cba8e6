"""Greedy generation on a GPU in bfloat16 at batch 1, against transformers' `generate`.

    PYTHONPATH=benchmarks python benchmarks/gpu/decode.py
    PYTHONPATH=benchmarks python benchmarks/gpu/decode.py --tiny 1 --rounds 1 --new 8

`bandwidth` is the share of the data sheet's memory bandwidth that reading every weight once per
token takes; the aim is 70 %.
"""

from __future__ import annotations

import harness
import jax
import jax.numpy as jnp
import pair
import pairs

import zoo

ABOUT = dict(model=pair.DENSE, aim={"bandwidth": 0.7}, both="bfloat16, greedy")


def main() -> None:
    args = harness.arguments(__doc__, rounds=9, batches=[1, 8], prompt=32, new=256, tiny=0)
    import torch

    before, rows = harness.machine(), []
    before["device"] = jax.devices()[0].device_kind
    model, params, theirs = pair.make("dense", bool(args.tiny), "bfloat16")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    theirs = theirs.to(torch.bfloat16)
    theirs.generation_config.eos_token_id = None
    theirs.generation_config.pad_token_id = 0
    for batch in args.batches:
        tokens = pairs.tokens(batch, args.prompt)
        prompts, ids = tokens.tolist(), torch.tensor(tokens, device=pair.device())

        def ours(prompts=prompts):
            return zoo.generate(model, params, prompts, args.new)

        def generate(ids=ids):
            with torch.inference_mode():
                made = theirs.generate(
                    ids, max_new_tokens=args.new, do_sample=False, attention_mask=ids * 0 + 1
                )
            return made.cpu()

        seconds = harness.alternate({"zoo": ours, "transformers": generate}, args.rounds, warmup=1)
        row = harness.compare(f"batch {batch}", seconds, new_tokens=args.new)
        if (chip := pair.chip()) is not None:
            weights = 2 * pairs.size(params) * args.new
            row["bandwidth"] = round(weights / row["zoo_s"] / chip.hbm, 3)
            row["transformers_bandwidth"] = round(weights / row["transformers_s"] / chip.hbm, 3)
        rows.append(row)
    harness.save("gpu_decode", args.out, before, rows, ABOUT)


if __name__ == "__main__":
    main()
