"""What rounding the weights costs and gains: KL, perplexity, memory, greedy decoding at batch 1.

    python benchmarks/quantise.py --steps 300

Two models: one trained here for so many steps on Python's standard library, and random weights of
34M parameters, on random tokens. KL is from the float32 model's distribution of the next token to
the rounded one's, in nats; speed is that of the rounded model over float32's, within each round.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import pairs
from ml_collections import ConfigDict

import zoo
from zoo.data import eval_batches, prepare
from zoo.rounding import method
from zoo.training import loop
from zoo.training.losses import IGNORED
from zoo.training.settings import defaults, from_config

METHODS = {
    "int8": method("int8"),
    "int4, groups of 128": method("int4"),
    "int4, groups of 32": method("int4", 32),
    "fp8": method("fp8"),
}
SMALL = dict(
    model_type="llama", vocab_size=2048, hidden_size=256, intermediate_size=768,
    num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
    max_position_embeddings=512, tie_word_embeddings=True,
)  # fmt: skip
ABOUT = dict(random=pairs.DENSE, trained=SMALL, computation="float32", rounded="linear maps")


def main() -> None:
    args = harness.arguments(__doc__, rounds=9, steps=300, new=64, batches=8)
    before, rows = harness.machine(), []
    with tempfile.TemporaryDirectory() as workdir:
        trained, params, batches = _trained(args.steps, Path(workdir), args.batches)
    rows += _rows("trained", trained, params, batches, args)
    model = zoo.Decoder(zoo.config_from_hf(pairs.DENSE))
    params = model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    tokens = pairs.tokens(4, 64)
    texts = [{"tokens": tokens, "targets": tokens, "segment_ids": np.ones_like(tokens)}]
    rows += _rows("random", model, params, texts, args)
    harness.save("quantise", args.out, before, rows, ABOUT)


def _trained(steps: int, workdir: Path, batches: int) -> tuple[zoo.Decoder, dict, list[dict]]:
    """A model after so many steps, and batches of text that it has not seen."""
    config = defaults()
    config.model = ConfigDict(SMALL)
    config.data.vocab_size, config.data.window, config.data.batch = SMALL["vocab_size"], 256, 8
    config.steps = config.evaluation.every = config.checkpoint.every = steps
    config.optimizer.learning_rate, config.optimizer.warmup = 3e-3, max(1, steps // 10)
    config.evaluation.batches = batches
    settings = from_config(config)
    loop.run(settings, workdir)
    found = zoo.load(workdir / "hf", dtype="float32")
    held_out = list(eval_batches(prepare(settings.data), "validation", 4, limit=batches))
    return zoo.Decoder(found.config), found.params, held_out


def _rows(
    name: str, model: zoo.Decoder, params: dict, batches: list[dict], args: Any
) -> list[dict]:
    """A row of figures per method."""

    @jax.jit
    def apply(params: dict, batch: dict) -> jax.Array:
        return model.apply(params, batch["tokens"], batch["segment_ids"]).logits

    prompt = [np.asarray(batches[0]["tokens"])[0, :32].tolist()]
    full, rows = _bytes(params), []

    def decode(params: dict) -> Any:
        return lambda: zoo.generate(model, params, prompt, args.new)

    for label, how in METHODS.items():
        rounded = zoo.quantize(params, how)
        quality = _quality(apply, params, rounded, batches)
        variants = {"zoo": decode(rounded), "float32": decode(params)}
        seconds = harness.alternate(variants, args.rounds)
        facts = dict(bytes_ratio=round(_bytes(rounded) / full, 3), **quality)
        rows.append(harness.compare(f"{name}, {label}", seconds, **facts))
    return rows


def _quality(apply: Any, params: dict, rounded: dict, batches: list[dict]) -> dict[str, float]:
    """Mean KL, and both perplexities, over tokens that have a successor."""
    found = []
    for batch in batches:
        want, got = (_logprobs(apply(p, batch)) for p in (params, rounded))
        targets = np.asarray(batch["targets"])
        real, at = targets != IGNORED, np.maximum(targets, 0)[..., None]
        losses = [-np.take_along_axis(x, at, axis=-1)[..., 0] for x in (want, got)]
        found.append(np.stack(((np.exp(want) * (want - got)).sum(-1), *losses))[:, real])
    kl, full, lossy = np.concatenate(found, axis=-1).mean(-1)
    ppl = {"perplexity_float32": math.exp(full), "perplexity_rounded": math.exp(lossy)}
    return {"kl": float(f"{kl:.3g}"), **{name: round(x, 3) for name, x in ppl.items()}}


def _logprobs(logits: jax.Array) -> np.ndarray:
    return np.asarray(jax.nn.log_softmax(logits), np.float64)


def _bytes(params: dict) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


if __name__ == "__main__":
    main()
