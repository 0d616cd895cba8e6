"""Serving: 32 requests of mixed length, a shared beginning, and guessing ahead; 34M parameters.

    python benchmarks/engine.py --requests 32 --slots 8

Requests are greedy and all there at once. transformers' continuous batching and `generate`, in
batches of as many rows as the engine has slots, make the same tokens. Times to the first token
count from the beginning; a batch of `generate` shows its first tokens when it ends.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import harness
import jax
import numpy as np
import pairs

import zoo
from zoo.inference import programs
from zoo.inference.engine import Engine, Request
from zoo.inference.speculative import speculate

ABOUT = dict(
    model=pairs.DENSE,
    both="float32, greedy",
    aim="2x total tokens per second of transformers' continuous batching",
)
PROGRAMS = ("begin", "extend", "decode", "choose", "choose_first", "score", "seat")


def main() -> None:
    args = harness.arguments(__doc__, rounds=3, requests=32, slots=8, shortest=16, longest=64)
    before, rows = harness.machine(), []
    model, params, hf = pairs.pair(pairs.DENSE)
    work = mixed(args.requests, args.shortest, args.longest)
    engine = Engine(model, params, slots=args.slots, length=2 * args.longest)
    engine.warm()
    compiled = count_programs()
    others = {
        "continuous batching": continuous(hf, work),
        "generate": batches(hf, work, args.slots),
    }
    for name, other in others.items():
        rows.append(against(name, lambda: serve(engine, work), other, args.rounds))
    rows.append(
        {"case": "programs compiled", "warm": compiled, "later": count_programs() - compiled}
    )
    rows.append(prefixes(model, params, args))
    rows.append(guesses(model, params, args))
    harness.save("engine", args.out, before, rows, ABOUT)


Work = list[tuple[list[int], int]]
Served = tuple[list[list[int]], list[float]]
"""Tokens of each request, and the seconds until its first."""


def mixed(count: int, shortest: int, longest: int) -> Work:
    """Prompts and how many tokens to make for each, both between two lengths."""
    lengths = np.random.default_rng(1).integers(shortest, longest, (count, 2))
    return [(pairs.tokens(1, n, i)[0].tolist(), int(new)) for i, (n, new) in enumerate(lengths)]


def serve(engine: Engine, work: Work) -> Served:
    start = time.perf_counter()
    tickets = [engine.submit(Request(prompt, new)) for prompt, new in work]
    texts: list[list[int]] = [[] for _ in work]
    first = [0.0] * len(work)
    while engine.step():
        for i, ticket in enumerate(tickets):
            if came := ticket.drain():
                first[i] = first[i] or time.perf_counter() - start
                texts[i] += [token.id for token in came]
    return texts, first


def continuous(hf: Any, work: Work) -> Callable[[], Served]:
    """transformers' continuous batching; a manager per call, as its `generate_batch` has."""
    from transformers import GenerationConfig

    longest = max(new for _, new in work)
    options = GenerationConfig(max_new_tokens=longest, do_sample=False, eos_token_id=-1)

    def run() -> Served:
        start = time.perf_counter()
        with hf.continuous_batching_context_manager(generation_config=options) as manager:
            names = [
                manager.add_request(prompt, max_new_tokens=new, record_timestamps=True)
                for prompt, new in work
            ]
            found = {}
            while len(found) < len(names):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    found[result.request_id] = result
                elif not manager.is_running():
                    raise RuntimeError("transformers' continuous batching stopped")
        results = [found[name] for name in names]
        return [r.generated_tokens for r in results], [r.timestamps[0] - start for r in results]

    return run


def batches(hf: Any, work: Work, rows: int) -> Callable[[], Served]:
    """`generate` in batches, padded on the left; each runs until its longest text is done."""
    import torch

    hf.generation_config.eos_token_id, hf.generation_config.pad_token_id = None, 0

    def run() -> Served:
        start, texts, first = time.perf_counter(), [], []
        for at in range(0, len(work), rows):
            part = work[at : at + rows]
            width = max(len(prompt) for prompt, _ in part)
            ids = torch.tensor([[0] * (width - len(p)) + p for p, _ in part])
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p, _ in part])
            new = max(new for _, new in part)
            with torch.inference_mode():
                made = hf.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False)
            rest = made[:, width:].tolist()
            texts += [row[:n] for row, (_, n) in zip(rest, part, strict=True)]
            first += [time.perf_counter() - start] * len(part)
        return texts, first

    return run


def against(name: str, ours: Callable[[], Served], theirs: Callable[[], Served], rounds: int):
    """One row: total tokens per second, and times to the first token."""
    agree(ours()[0], theirs()[0], name)
    firsts: dict[str, list[list[float]]] = {"zoo": [], name: []}

    def timed(key: str, run: Callable[[], Served]) -> Callable[[], None]:
        return lambda: firsts[key].append(run()[1])

    variants = {"zoo": timed("zoo", ours), name: timed(name, theirs)}
    seconds = harness.alternate(variants, rounds, warmup=0)
    made = sum(map(len, ours()[0]))
    facts = {"tokens": made, "tokens_per_s": round(made / float(np.median(seconds["zoo"])), 1)}
    for key, label in (("zoo", "first_p50_p95_s"), (name, "their_first_p50_p95_s")):
        facts[label] = np.percentile(np.concatenate(firsts[key]), (50, 95)).round(3).tolist()
    return harness.compare(name, seconds, **facts)


def agree(ours: list[list[int]], theirs: list[list[int]], name: str) -> None:
    """Raises ValueError unless nearly all texts are the same: ties of rounding may differ."""
    same = np.mean([a == b for a, b in zip(ours, theirs, strict=True)])
    if same < 0.9:
        raise ValueError(
            f"{name}: only {same:.0%} of the texts agree, so there is nothing to compare"
        )


def prefixes(model: zoo.Decoder, params: dict, args: Any) -> dict[str, Any]:
    """Time to the first token of a prompt whose beginning is cached, and of one that is new."""
    engine = Engine(model, params, slots=1, length=2 * args.longest, prefix_bytes=2**28)
    engine.warm()
    system = pairs.tokens(1, args.longest, 1)[0].tolist()
    engine.run([Request([*system, 5], 1)])
    fresh = iter(range(10, 10**6))

    def ask(prompt: list[int]) -> None:
        engine.run([Request(prompt, 1)])

    def hit() -> None:
        ask([*system, next(fresh) % pairs.VOCAB])

    def miss() -> None:
        ask([next(fresh) % pairs.VOCAB, *system])

    seconds = harness.alternate({"zoo": hit, "miss": miss}, args.rounds)
    return harness.compare("prefix hit against miss", seconds, prompt_tokens=args.longest)


def guesses(model: zoo.Decoder, params: dict, args: Any) -> dict[str, Any]:
    """Guessing ahead with a model of a quarter of the layers, against none.

    Random models agree on nothing. So the other layers add little here, and the draft is what is
    left without them; the acceptance that the ratio belongs to stands beside it.
    """
    (stack,) = model.cfg.stacks
    shallow = dataclasses.replace(stack, repeats=max(1, stack.repeats // 4))
    params = damped(params, shallow.repeats)
    cfg = dataclasses.replace(model.cfg, stacks=(shallow,))
    cut = jax.tree.map(lambda leaf: leaf[: shallow.repeats], params["params"]["stack_0"])
    draft = zoo.Decoder(cfg), {"params": {**params["params"], "stack_0": cut}}
    prompts = pairs.tokens(1, args.shortest, 3).tolist()
    found = speculate(model, params, prompts, args.longest, draft=draft)
    if found.tokens != zoo.generate(model, params, prompts, args.longest):
        raise ValueError("guessing ahead made another text")
    variants = {
        "zoo": lambda: speculate(model, params, prompts, args.longest, draft=draft),
        "plain": lambda: zoo.generate(model, params, prompts, args.longest),
    }
    seconds = harness.alternate(variants, args.rounds)
    facts = dict(acceptance=round(found.acceptance, 3), passes=found.passes)
    return harness.compare("guessing ahead against plain", seconds, **facts)


def damped(params: dict, layers: int) -> dict:
    """Parameters of which all layers but the first few add a hundredth of what they did."""

    def damp(path: tuple, leaf: jax.Array) -> jax.Array:
        if not {"o", "down"} & {key.key for key in path}:
            return leaf
        factors = np.where(np.arange(leaf.shape[0]) < layers, 1.0, 0.01).astype(np.float32)
        return leaf * factors.reshape(-1, *[1] * (leaf.ndim - 1))

    stack = jax.tree_util.tree_map_with_path(damp, params["params"]["stack_0"])
    return {"params": {**params["params"], "stack_0": stack}}


def count_programs() -> int:
    """Programs of the engine that were compiled in this process."""
    return sum(getattr(programs, name)._cache_size() for name in PROGRAMS)


if __name__ == "__main__":
    main()
