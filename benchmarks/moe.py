"""A mixture-of-experts block, top-2 of 8, 32 and 128 experts over 4096 tokens, float32.

    python benchmarks/moe.py --experts 8 32 128

Against transformers' `Qwen3MoeSparseMoeBlock` with its `grouped_mm` experts and the same weights:
router, dispatch, three grouped products (SwiGLU), combine; once forward, once forward and backward
with the gradients of the input and of all parameters. Outputs and input gradients are compared
before anything is timed. `growth` is our median over our median at the fewest experts.

With `--reuse 0` every call returns its large buffers to the system and pays for fresh, zeroed pages
again, on both sides: with 128 experts that is most of what the gradients of the weights cost. By
default the process keeps freed memory, as `train.py` does.
"""

from __future__ import annotations

import statistics

import harness
import jax
import jax.numpy as jnp
import numpy as np

from zoo import grouped
from zoo.config import MoE
from zoo.moe import route

TOKENS, DIM, HIDDEN, CHOSEN = 4096, 512, 704, 2
ABOUT = dict(
    tokens=TOKENS, dim=DIM, hidden=HIDDEN, chosen=CHOSEN, aim=1.0, growth_aim=1.3,
    both="float32", experts="grouped_mm",
)  # fmt: skip


def main() -> None:
    args = harness.arguments(__doc__, rounds=15, experts=[8, 32, 128], reuse=1)
    about = ABOUT | harness.settle_memory(args.reuse)
    before, rows, first = harness.machine(), [], {}
    for experts in args.experts:
        for name, variants in passes(experts).items():
            seconds = harness.alternate(variants, args.rounds)
            ours = statistics.median(seconds["zoo"])
            growth = round(ours / first.setdefault(name, ours), 3)
            rows.append(harness.compare(f"{experts} experts, {name}", seconds, growth=growth))
    harness.save("moe", args.out, before, rows, about)


def passes(experts: int) -> dict[str, dict]:
    """The timed calls on one set of weights: {pass: {side: function}}."""
    import torch
    from transformers.models.qwen3_moe.modeling_qwen3_moe import (
        Qwen3MoeConfig,
        Qwen3MoeSparseMoeBlock,
    )

    config = Qwen3MoeConfig(
        hidden_size=DIM,
        moe_intermediate_size=HIDDEN,
        num_experts=experts,
        num_experts_per_tok=CHOSEN,
        norm_topk_prob=True,
    )
    config._experts_implementation = "grouped_mm"
    theirs = Qwen3MoeSparseMoeBlock(config)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=DIM**-0.5)
    rng = np.random.default_rng(experts)
    inputs, cotangent = rng.normal(size=(2, 1, TOKENS, DIM)).astype(np.float32)
    their_x = torch.tensor(inputs, requires_grad=True)
    their_cotangent = torch.tensor(cotangent)

    def their_forward():
        with torch.no_grad():
            return theirs(their_x)

    def their_gradient():
        theirs.zero_grad(set_to_none=True)
        their_x.grad = None
        (theirs(their_x) * their_cotangent).sum().backward()
        return their_x.grad

    fused = theirs.experts.gate_up_proj.detach().numpy().swapaxes(1, 2)
    params = {
        "router": theirs.gate.weight.detach().numpy().T,
        "gate": fused[:, :, :HIDDEN],
        "up": fused[:, :, HIDDEN:],
        "down": theirs.experts.down_proj.detach().numpy().swapaxes(1, 2),
    }
    params = jax.tree.map(lambda x: jnp.array(np.ascontiguousarray(x)), params)
    spec = MoE(experts, CHOSEN, HIDDEN)
    x, weights = jnp.array(inputs[0]), jnp.array(cotangent[0])

    @jax.jit
    def forward(x, params):
        routing = route(x @ params["router"], spec)
        matrices = params["gate"], params["up"], params["down"]
        return grouped.expert_mlp(x, routing.experts, routing.weights, *matrices)

    gradient = jax.jit(jax.grad(lambda x, params: (forward(x, params) * weights).sum(), (0, 1)))
    np.testing.assert_allclose(forward(x, params), their_forward().numpy()[0], atol=1e-4)
    np.testing.assert_allclose(gradient(x, params)[0], their_gradient().numpy()[0], atol=1e-3)
    return {
        "forward": {
            "zoo": lambda: jax.block_until_ready(forward(x, params)),
            "transformers": their_forward,
        },
        "forward and backward": {
            "zoo": lambda: jax.block_until_ready(gradient(x, params)),
            "transformers": their_gradient,
        },
    }


if __name__ == "__main__":
    main()
