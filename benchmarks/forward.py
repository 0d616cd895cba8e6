"""Dense forward pass to logits: 34M parameters, 4 x 256 tokens, float32, against transformers.

python benchmarks/forward.py
"""

from __future__ import annotations

import harness
import jax
import jax.numpy as jnp
import pairs

ABOUT = dict(model=pairs.DENSE, aim=1.4, both="float32, sdpa in torch")


def main() -> None:
    args = harness.arguments(__doc__, rounds=30, batch=4, length=256)
    import torch

    before, rows = harness.machine(), []
    model, params, hf = pairs.pair(pairs.DENSE)
    tokens = pairs.tokens(args.batch, args.length)
    ids, array = torch.tensor(tokens), jnp.asarray(tokens, jnp.int32)
    apply = jax.jit(lambda params, tokens: model.apply(params, tokens).logits)

    def theirs():
        with torch.inference_mode():
            return hf(ids, use_cache=False).logits

    variants = {
        "zoo": lambda: jax.block_until_ready(apply(params, array)),
        "transformers": theirs,
    }
    pairs.agree(*(run() for run in variants.values()), bound=1e-5)
    seconds = harness.alternate(variants, args.rounds)
    facts = dict(parameters=pairs.size(params), tokens=tokens.size)
    case = f"{args.batch} x {args.length} tokens"
    rows.append(harness.compare(case, seconds, **facts))
    harness.save("forward", args.out, before, rows, ABOUT)


if __name__ == "__main__":
    main()
