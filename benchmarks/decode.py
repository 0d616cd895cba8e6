"""Greedy generation at batch 1 and 8: 34M parameters, float32, against transformers' `generate`.

    python benchmarks/decode.py --batches 1 8

Both are timed end to end, prefill included, and must make the same tokens.
"""

from __future__ import annotations

import harness
import pairs

import zoo

ABOUT = dict(model=pairs.DENSE, aim={"batch 1": 2.8, "batch 8": 1.3}, both="float32, greedy")


def main() -> None:
    args = harness.arguments(__doc__, rounds=9, batches=[1, 8], prompt=32, new=128)
    import torch

    before, rows = harness.machine(), []
    model, params, hf = pairs.pair(pairs.DENSE)
    hf.generation_config.eos_token_id = None
    hf.generation_config.pad_token_id = 0
    for batch in args.batches:
        tokens = pairs.tokens(batch, args.prompt)
        prompts, ids = tokens.tolist(), torch.tensor(tokens)

        def ours(prompts=prompts):
            return zoo.generate(model, params, prompts, args.new)

        def theirs(ids=ids):
            with torch.inference_mode():
                made = hf.generate(
                    ids, max_new_tokens=args.new, do_sample=False, attention_mask=ids * 0 + 1
                )
            return made[:, ids.shape[1] :]

        if (same := _same(ours(), theirs().tolist())) < 1:
            raise ValueError(f"batch {batch}: only {same:.0%} of the texts agree")
        seconds = harness.alternate({"zoo": ours, "transformers": theirs}, args.rounds, warmup=1)
        facts = dict(prompt_tokens=args.prompt, new_tokens=args.new)
        rows.append(harness.compare(f"batch {batch}", seconds, **facts))
    harness.save("decode", args.out, before, rows, ABOUT)


def _same(ours: list[list[int]], theirs: list[list[int]]) -> float:
    return sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)


if __name__ == "__main__":
    main()
