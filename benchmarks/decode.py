"""Greedy generation at batch 1 and 8, float32, against transformers' `generate`.

    python benchmarks/decode.py --models dense experts latent --batches 1 8

Three models: a Llama of 34M parameters, the mixture of 32 experts of `moe_step.py`, and the Llama
with DeepSeek-V3's latent attention. Both sides are timed end to end, prefill included, and must
make the same tokens. `gb_per_s` is what a row's active parameters come to at this speed, so at
batch 1 the rate at which weights stream from memory, and `of_copy` its share of the rate at which
XLA reads and writes 256 MB in place.
"""

from __future__ import annotations

import time

import harness
import jax
import jax.numpy as jnp
import numpy as np
import pairs

import zoo
from zoo import describe

MODELS = {"dense": pairs.DENSE, "experts": pairs.sparse(32), "latent": pairs.LATENT}
ABOUT = dict(
    models=MODELS,
    aim={"batch 1": 2.8, "batch 8": 1.3, "of_copy at batch 1": 0.5},
    both="float32, greedy",
)


def main() -> None:
    args = harness.arguments(
        __doc__, rounds=5, models=list(MODELS), batches=[1, 8], prompt=32, new=128
    )
    before, rows, copied = harness.machine(), [], copy_rate()
    for name in args.models:
        model, params, hf = pairs.pair(MODELS[name])
        hf.generation_config.eos_token_id = None
        hf.generation_config.pad_token_id = 0
        read = 4 * describe.size(model.cfg).active * args.new
        for batch in args.batches:
            sides = variants(model, params, hf, batch, args)
            seconds = harness.alternate(sides, args.rounds, warmup=1)
            rate = read / float(np.median(seconds["zoo"])) / 1e9
            facts = dict(gb_per_s=round(rate, 2), of_copy=round(rate / copied, 3))
            rows.append(harness.compare(f"{name}, batch {batch}", seconds, **facts))
    facts = dict(prompt_tokens=args.prompt, new_tokens=args.new, copy_gb_per_s=round(copied, 1))
    harness.save("decode", args.out, before, rows, ABOUT | facts)


def variants(model: zoo.Decoder, params: dict, hf, batch: int, args) -> dict:
    """The timed calls, once it is sure that they make the same tokens."""
    import torch

    tokens = pairs.tokens(batch, args.prompt)
    prompts, ids = tokens.tolist(), torch.tensor(tokens)

    def ours():
        return zoo.generate(model, params, prompts, args.new)

    def theirs():
        with torch.inference_mode():
            made = hf.generate(
                ids, max_new_tokens=args.new, do_sample=False, attention_mask=ids * 0 + 1
            )
        return made[:, ids.shape[1] :]

    if (same := _same(ours(), theirs().tolist())) < 1:
        raise ValueError(f"batch {batch}: only {same:.0%} of the texts agree")
    return {"zoo": ours, "transformers": theirs}


def copy_rate(count: int = 1 << 26) -> float:
    """GB per second that XLA reads and writes as it changes an array, the best of several times.

    In place: fresh memory would be measured by the system's speed of handing it out.
    """
    x, times = jnp.ones(count, jnp.float32), []
    change = jax.jit(lambda x: x + 1, donate_argnums=0)
    for _ in range(7):
        start = time.perf_counter()
        x = jax.block_until_ready(change(x))
        times.append(time.perf_counter() - start)
    return 2 * x.nbytes / min(times) / 1e9


def _same(ours: list[list[int]], theirs: list[list[int]]) -> float:
    return sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)


if __name__ == "__main__":
    main()
