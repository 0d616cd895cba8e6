"""One training step: loss, gradients over microbatches, update, and the routers' balance.

Axes: B windows of a batch, T tokens of a window, M = B * T, D embedding, V vocabulary, L repeats of
a stack, E experts. A batch is {"tokens", "targets", "segment_ids", "positions"}, each i32[B, T].
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from zoo import lora, sharding
from zoo.config import Config
from zoo.decoder import Decoder
from zoo.training.losses import IGNORED, Head, cross_entropy, load_balance
from zoo.training.settings import Balance

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes, and a checkpoint holds.

    `step` i32[] counts updates; `params` is what `model.apply` takes, of which what learns
    (`zoo.lora.split`) is float32 whatever the type of the computation; `opt_state` is of that
    alone; `rng` is a key that steps fold their number into.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    rng: jax.Array


def create_state(
    model: Decoder,
    optimizer: optax.GradientTransformation,
    seed: int,
    params: dict | None = None,
    placed: TrainState | None = None,
) -> TrainState:
    """The state before the first step, with random parameters unless `params` are given.

    Where these have adapters, what they stand on keeps its type.

    With `placed`, the shardings of `state_shardings`, every array is made in its parts.
    """
    init, rng = jax.random.split(jax.random.key(seed))
    tokens = jnp.zeros((1, 2), jnp.int32)

    def compiled(make: Callable, where: Callable) -> Callable:
        return jax.jit(make, **({} if placed is None else {"out_shardings": where(placed)}))

    if params is None:
        params = compiled(lambda key: model.init(key, tokens), lambda s: s.params)(init)
    learnt, frozen = lora.split(params)
    params = lora.join(jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), learnt), frozen)
    if placed is not None:
        params = jax.device_put(params, placed.params)
    # Made by a program, as keys cannot be put onto devices of other processes.
    begin = compiled(lambda rng: (jnp.zeros((), jnp.int32), rng), lambda s: (s.step, s.rng))
    step, rng = begin(rng)
    learnt, _ = lora.split(params["params"])
    opt_state = compiled(optimizer.init, lambda s: s.opt_state)(learnt)
    return TrainState(step, params, opt_state, rng)


def state_shardings(
    model: Decoder,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    rules: str | sharding.Rules | None = None,
    params: dict | None = None,
) -> TrainState:
    """A `NamedSharding` for every array of a state: moments lie as their parameters.

    `params` are given where they have adapters, as to `create_state`.

    Raises:
        ValueError: as `zoo.sharding.shardings`.
    """
    placed = sharding.shardings(model.cfg, mesh, rules)
    placed = placed if params is None else lora.shardings(placed, params)
    shapes = jax.eval_shape(lambda p: create_state(model, optimizer, 0, p), params)
    whole = NamedSharding(mesh, PartitionSpec())
    learnt, where = (lora.split(tree["params"])[0] for tree in (shapes.params, placed))
    moments = sharding.shardings_like(shapes.opt_state, learnt, where)
    return TrainState(whole, placed, moments, whole)


def make_step(
    model: Decoder,
    optimizer: optax.GradientTransformation,
    balance: Balance,
    accumulate: int = 1,
    mtp_loss: float = 0.0,
    placed: TrainState | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Compiles (state, batch) -> (state, metrics); the state that goes in is donated.

    Gradients are of what learns alone (`zoo.lora.split`): all parameters, or their adapters.

    `accumulate` microbatches of B / accumulate windows run one after the other. Their gradients add
    up to the gradient of the mean over all targets of the batch, however these are spread.

    `mtp_loss` weighs the mean loss of the model's layers of multi-token prediction
    (arXiv:2412.19437 equation 25). `placed`, of `state_shardings`, is where the state stays.

    Metrics, all f32[]: "loss" in nats per target, "grad_norm" before clipping, "tokens" without
    padding; "aux_loss", the mean over microbatches, and "mtp_loss" where they are used; and with
    experts "imbalance", the largest load of an expert over the mean of its layer, less 1, at the
    worst layer (MaxVio, arXiv:2408.15664).
    """
    predicts = bool(mtp_loss and model.cfg.mtp)

    def loss_fn(learnt: dict, frozen: dict, batch: Batch, targets: jax.Array):
        params = {"params": lora.join(learnt, frozen)}
        out, nll = token_losses(model, params, batch)
        total = loss = nll.sum() / targets
        stats, extra = out.aux, {}
        if predicts:
            further, found = further_losses(model, params, batch, out.hidden)
            extra["mtp_loss"] = further / targets
            total, stats = total + mtp_loss * extra["mtp_loss"], stats | found
        if balance.aux_loss:
            extra["aux_loss"] = load_balance(moe_stats(stats)) / accumulate
            total = total + balance.aux_loss * extra["aux_loss"]
        return total, ({"loss": loss, **extra}, stats)

    def gradients(learnt: dict, frozen: dict, batch: Batch):
        targets = jnp.maximum((batch["targets"] != IGNORED).sum(), 1)
        grad = jax.grad(loss_fn, has_aux=True)
        if accumulate == 1:
            return grad(learnt, frozen, batch, targets)
        parts = jax.tree.map(_split(accumulate), batch)
        first = jax.tree.map(lambda x: x[0], parts)
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            jax.eval_shape(grad, learnt, frozen, first, targets),
        )

        def add(total, part):
            return jax.tree.map(jnp.add, total, grad(learnt, frozen, part, targets)), None

        return jax.lax.scan(add, zeros, parts)[0]

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        learnt, frozen = lora.split(state.params["params"])
        grads, (losses, stats) = gradients(learnt, frozen, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, learnt)
        learnt = move_biases(optax.apply_updates(learnt, updates), stats, balance.bias_rate)
        params = {"params": lora.join(learnt, frozen)}
        metrics = {
            **losses,
            "grad_norm": global_norm(grads),
            "tokens": (batch["segment_ids"] > 0).sum().astype(jnp.float32),
        }
        if stats:
            metrics["imbalance"] = imbalance(stats)
        return TrainState(state.step + 1, params, opt_state, state.rng), metrics

    stays = {} if placed is None else {"out_shardings": (placed, None)}
    return jax.jit(step, donate_argnums=0, **stays)


def _split(parts: int) -> Callable[[jax.Array], jax.Array]:
    """i32[B, T] -> i32[parts, B / parts, T], every part over all devices."""

    def split(x: jax.Array) -> jax.Array:
        x = x.reshape(parts, -1, *x.shape[1:])
        return nn.with_logical_constraint(x, (None, "batch", "length"))

    return split


def token_losses(model: Decoder, params: dict, batch: Batch):
    """The output of `model.hidden`, and the loss of every token, f32[M], 0 without a target."""
    out = model.apply(
        params, batch["tokens"], batch["segment_ids"], batch["positions"], method="hidden"
    )
    return out, _losses(model, params, out.hidden, batch["targets"])


def further_losses(model: Decoder, params: dict, batch: Batch, hidden: jax.Array):
    """The loss of multi-token prediction: f32[], a sum over tokens and mean over depths, and `aux`.

    Depth k reads the token that depth k - 1 was to predict, and is to predict the one after it, in
    the same document.
    """
    targets, positions, total, aux = batch["targets"], batch["positions"], 0.0, {}
    for depth in range(len(model.cfg.mtp)):
        known, positions = jnp.maximum(targets, 0), positions + 1
        out = model.apply(
            params, depth, hidden, known, batch["segment_ids"], positions, method="draft"
        )
        behind = jnp.pad(targets[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORED)
        targets = jnp.where(targets == IGNORED, IGNORED, behind)
        total = total + _losses(model, params, out.hidden, targets).sum()
        hidden, aux = out.hidden, aux | out.aux
    return total / len(model.cfg.mtp), aux


def _losses(model: Decoder, params: dict, hidden: jax.Array, targets: jax.Array) -> jax.Array:
    """f32[M]."""
    return cross_entropy(hidden, head(model.cfg, params), targets).reshape(-1)


def head(cfg: Config, params: dict) -> Head:
    """What `Decoder.logits` does: a matrix of its own or the embedding's, scale and bounds."""
    tree = params["params"]
    own = tree.get("head", {})
    w = tree["embed"]["table"].T if cfg.tie_embeddings else own["w"]
    return Head(w, own.get("b"), cfg.logit_scale, cfg.logit_softcap)


def moe_stats(aux: dict) -> list:
    """The `MoEStats` of a call's `aux`, in order of layers: stacks, then places in the pattern."""
    return [aux[s][j] for s in sorted(aux, key=_number) for j in sorted(aux[s], key=_number)]


def move_biases(params: dict, stats: dict, rate: float) -> dict:
    """b_e += rate * sign(mean load - load_e), per layer (arXiv:2412.19437 section 2.1.2).

    Args:
        params: what learns, without the outer "params"; where no moe/bias does, it is returned as
            it is.
        stats: a call's `aux`, summed over microbatches, loads f32[L, E].
    """
    if not rate:
        return params
    params = dict(params)
    for stack, layers in stats.items():
        params[stack] = dict(params[stack])
        for layer, found in layers.items():
            moe = params[stack][layer]["moe"]
            if not jax.tree.leaves(moe.get("bias")):
                continue
            sign = jnp.sign(found.load.mean(-1, keepdims=True) - found.load)
            moved = moe | {"bias": {"b": moe["bias"]["b"] + rate * sign}}
            params[stack][layer] = params[stack][layer] | {"moe": moved}
    return params


def global_norm(tree: dict) -> jax.Array:
    """f32[]: the Euclidean norm of all leaves together."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)))


def imbalance(stats: dict) -> jax.Array:
    """f32[]: max over layers of (largest load / mean load - 1); 0 is perfect balance."""
    worst = [
        (s.load.max(-1) / jnp.maximum(s.load.mean(-1), 1e-9) - 1).max() for s in moe_stats(stats)
    ]
    return jnp.stack(worst).max()


def _number(name: str) -> int:
    return int(name.rsplit("_", 1)[1])
