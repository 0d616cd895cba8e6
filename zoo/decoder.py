"""The decoder: embedding, stacks of layers, final norm and head, for every `Config` there is.

Axes: B batch, T query positions, S slots, D embedding, V vocabulary, L repeats of a stack, E
experts.

A stack is one `nn.scan` over its repeats, so compile time does not grow with depth; parameters lead
with L. `unstacked` reads the same layers as `stack_0_0`, `stack_0_1`, ... instead (see
`zoo.inference.unstack`), which spares a decoding step the copies that a scan makes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo import pipeline, rope, stacks, zigzag
from zoo.axes import unboxed
from zoo.cache import Cache, advanced, slots
from zoo.config import MLA, MLP, Attention, Config, GatedDelta, Layer, Stack
from zoo.delta import GatedDeltaNet
from zoo.gqa import GroupedQueryAttention
from zoo.layers import Embed, GatedMLP, Linear, Normalize, precision
from zoo.mla import LatentAttention
from zoo.moe import MixtureOfExperts, MoEStats

ACTIVATION_AXES = ("batch", "length", "act_embed")
MIXERS: dict[type, tuple[type[nn.Module], str]] = {
    Attention: (GroupedQueryAttention, "attn"),
    MLA: (LatentAttention, "attn"),
    GatedDelta: (GatedDeltaNet, "delta"),
}
"""What computes each kind of mixer, and what its parameters are called."""


class Output(NamedTuple):
    """What a call returns.

    `logits` f32[B, T, V], or None from `hidden`; `cache` with the tokens in it, or None; `aux`, the
    `MoEStats` of every MoE layer by stack and layer, stacked over repeats; `hidden` dtype[B, T, D]
    after the final norm, or None from a plain call.
    """

    logits: jax.Array | None
    cache: Cache | None
    aux: dict[str, dict[str, MoEStats]]
    hidden: jax.Array | None = None


class Context(NamedTuple):
    """What all layers share: rotation tables per distinct rope, positions i32[B, T], offset i32[B]
    (None without a cache, and while one is filled from empty), ids i32[B, T]; and where devices
    share rows, the `slots` i32[T] of their zigzag order."""

    turns: tuple[rope.Turn, ...]
    positions: jax.Array
    offset: jax.Array | None
    segment_ids: jax.Array | None
    slots: jax.Array | None


class Carried(NamedTuple):
    """What goes from layer to layer: `x` dtype[B, T, D], and where layers share it, `chosen`
    bool[B, T, S], the tokens that the last indexer lets each query see."""

    x: jax.Array
    chosen: jax.Array | None = None


class Block(nn.Module):
    """One layer: x + mixer(norm(x)), then x + ffn(norm(x)), with norms where `Layer` has them."""

    layer: Layer
    cfg: Config
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, carried: Carried, cache: Any, context: Context):
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        (x, chosen), ffn, dim = carried, self.layer.ffn, self.cfg.embed_dim
        with jax.named_scope("attention"):
            h = self._normalized("attn_norm", x)
            y, cache, chosen = self._mixed(h, chosen, cache, context)
            x = self._add(x, self._normalized("attn_post_norm", y))
        with jax.named_scope("ffn"):
            h, aux = self._normalized("ffn_norm", x), None
            if isinstance(ffn, MLP):
                y = GatedMLP(ffn, dim, **types, name="mlp")(h)
            else:
                real = None if context.segment_ids is None else context.segment_ids > 0
                y, aux = MixtureOfExperts(ffn, dim, **types, name="moe")(h, real)
            x = self._add(x, self._normalized("ffn_post_norm", y))
        return Carried(x, chosen if self.cfg.shares_choice else None), cache, aux

    def _mixed(self, x: jax.Array, chosen: jax.Array | None, cache: Any, context: Context):
        """What the mixer makes of x, its cache, and what the last indexer chose."""
        mixer, types = self.layer.mixer, dict(dtype=self.dtype, param_dtype=self.param_dtype)
        module, name = MIXERS[type(mixer)]
        turn = None if mixer.rope is None else context.turns[self.cfg.ropes.index(mixer.rope)]
        inputs = dict(
            positions=context.positions, cache=cache,
            offset=context.offset, segment_ids=context.segment_ids,
        )  # fmt: skip
        mix = module(mixer, self.cfg.embed_dim, **types, name=name)
        if isinstance(mixer, MLA):
            return mix(x, turn, chosen=chosen, slots=context.slots, **inputs)
        if isinstance(mixer, Attention):
            return *mix(x, turn, slots=context.slots, **inputs), chosen
        x, inputs["segment_ids"] = zigzag.whole((x, context.segment_ids), context.slots)
        y, cache = mix(x, turn, **inputs)
        return zigzag.arrange(y, context.slots), cache, chosen

    def _normalized(self, name: str, x: jax.Array) -> jax.Array:
        """x through the norm of this name, if the layer has it."""
        if name not in self.layer.norms:
            return x
        sizes = (self.cfg.embed_dim,)
        return Normalize(sizes, self.layer.norm, param_dtype=self.param_dtype, name=name)(x)

    def _add(self, x: jax.Array, y: jax.Array) -> jax.Array:
        if self.layer.residual_scale != 1.0:
            y = y * self.layer.residual_scale
        return nn.with_logical_constraint(x + y, ACTIVATION_AXES)


class Pattern(nn.Module):
    """One repeat of a stack, as a scan's body: carries x on, maps over caches and statistics."""

    stack: Stack
    cfg: Config
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, carried: Carried, cache: dict[str, Any] | None, context: Context):
        kept, aux = {}, {}
        for j, layer in enumerate(self.stack.layers):
            name = f"layer_{j}"
            block = Block(layer, self.cfg, self.dtype, self.param_dtype, name=name)
            if layer.shares:
                held = kept[f"layer_{j - layer.shares}"]
            else:
                held = None if cache is None else cache[name]
            carried, kept[name], found = block(carried, held, context)
            aux |= {} if found is None else {name: found}
        return carried, (None if cache is None else {name: kept[name] for name in cache}, aux)


class Predictor(nn.Module):
    """One depth of multi-token prediction (DeepSeek-V3, arXiv:2412.19437 section 2.2).

    From a token's hidden state and the next token's embedding, the hidden state that predicts the
    token after that.
    """

    layer: Layer
    cfg: Config
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, hidden: jax.Array, embedded: jax.Array, cache: Any, context: Context):
        dim, types = self.cfg.embed_dim, dict(dtype=self.dtype, param_dtype=self.param_dtype)

        def normalized(name: str, x: jax.Array) -> jax.Array:
            return Normalize((dim,), self.cfg.norm, param_dtype=self.param_dtype, name=name)(x)

        both = normalized("embed_norm", embedded), normalized("hidden_norm", hidden)
        project = Linear((2 * dim,), (dim,), ("embed", "norm"), name="proj", **types)
        block = Block(self.layer, self.cfg, self.dtype, self.param_dtype, name="layer_0")
        x = Carried(project(jnp.concatenate(both, axis=-1)))
        carried, held, aux = block(x, None if cache is None else cache["layer_0"], context)
        x = normalized("norm", carried.x) if self.cfg.mtp_norm else carried.x
        return x, {"layer_0": held}, {"layer_0": aux} if aux else {}


class Decoder(nn.Module):
    """A language model.

    Attributes:
        cfg: the architecture.
        dtype: type of activations and products; softmax, norms, angles and logits stay float32.
        param_dtype: type of the parameters that `init` makes.
        remat: a policy of `jax.checkpoint_policies` to recompute layers by in the backward pass.
        unroll: repeats of a stack compiled side by side; more compiles longer and may run faster.
        unstacked: read parameters and caches per repeat, as `zoo.inference.unstack` makes them.
        microbatches: of a batch on a mesh with stages, as `zoo.pipeline.run` takes them.
        rounds: of each microbatch through the stages, likewise.
    """

    cfg: Config
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    remat: Callable[..., bool] | None = None
    unroll: int = 1
    unstacked: bool = False
    microbatches: int | None = None
    rounds: int = 1

    def setup(self):
        cfg, types = self.cfg, dict(dtype=self.dtype, param_dtype=self.param_dtype)
        self.embed = Embed(cfg.vocab_size, cfg.embed_dim, **types)
        body = Pattern
        if self.remat is not None:
            body = nn.remat(Pattern, policy=self.remat, prevent_cse=self.unstacked)
        for i, stack in enumerate(cfg.stacks):
            spec = (stack, cfg, self.dtype, self.param_dtype)
            if self.unstacked:
                for r in range(stack.repeats):
                    setattr(self, f"stack_{i}_{r}", body(*spec))
            else:
                setattr(self, f"stack_{i}", body(*spec))
        for k, layer in enumerate(cfg.mtp):
            setattr(self, f"mtp_{k}", Predictor(layer, cfg, self.dtype, self.param_dtype))
        self.final_norm = Normalize((cfg.embed_dim,), cfg.norm, param_dtype=self.param_dtype)
        if not cfg.tie_embeddings:
            axes = ("embed", "vocab")
            self.head = Linear(
                (cfg.embed_dim,), (cfg.vocab_size,), axes, bias=cfg.head_bias, **types
            )

    @nn.nowrap
    def init(self, rngs, tokens: jax.Array, *args, **kwargs) -> dict:
        """Parameters {"params": ...} as plain arrays; `boxed_init` keeps their logical axes."""
        return unboxed(self.boxed_init(rngs, tokens, *args, **kwargs))

    @nn.nowrap
    def init_with_output(
        self, rngs, tokens: jax.Array, *args, method: Any = None, **kwargs
    ) -> tuple[Output, dict]:
        """The `Output` of a call beside `init`'s parameters; flax's bridge to NNX asks for both.

        `method` is the one called, as in `apply`: there are parameters for all of them.
        """
        params = self.init(rngs, tokens, *args, **kwargs)
        return self.apply(params, tokens, *args, method=method, **kwargs), params

    @nn.nowrap
    def boxed_init(self, rngs, tokens: jax.Array, *args, **kwargs) -> dict:
        """`init` with every array boxed beside its logical axis names; compiled as one program."""

        def boxed(rngs, tokens):
            whole = Decoder._everything
            return nn.Module.init_with_output(self, rngs, tokens, *args, method=whole, **kwargs)[1]

        return jax.jit(boxed)(rngs, tokens)

    def __call__(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> Output:
        """Logits for the token after each of `tokens`.

        Args:
            tokens: i32[B, T].
            segment_ids: i32[B, T]; 0 is padding, other values name documents packed into a row, and
                tokens see their own document only. None is one document per row.
            positions: i32[B, T], for rotary embedding only; None counts on from the cache or from
                0.
            cache: of `zoo.cache.init`; the tokens are written behind those it holds, and rows with
                padding on the right keep it out of `lengths`.

        Returns:
            `Output`, with `hidden` None.
        """
        out = self.hidden(tokens, segment_ids, positions, cache)
        return out._replace(logits=self.logits(out.hidden), hidden=None)

    def hidden(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> Output:
        """Like a plain call, up to the final norm: `hidden` dtype[B, T, D] instead of `logits`."""
        context = self._context(tokens, segment_ids, positions, cache)
        tokens = zigzag.arrange(tokens, context.slots)
        carried = Carried(self._embedded(tokens), self._all_chosen(tokens, cache))
        stacks, aux = {}, {}
        for i in range(len(self.cfg.stacks)):
            name = f"stack_{i}"
            held = None if cache is None else cache.stacks[name]
            carried, stacks[name], found = self._run(i, carried, held, context)
            aux |= {name: found} if found else {}
        cache = advanced(cache, stacks, tokens, segment_ids)
        return Output(None, cache, aux, zigzag.restore(self.final_norm(carried.x), context.slots))

    def draft(
        self,
        depth: int,
        hidden: jax.Array,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> Output:
        """The hidden states of `cfg.mtp[depth]`, whose `logits` are for one token further on.

        Args:
            depth: 0 predicts the token after the next, and so on.
            hidden: dtype[B, T, D] of `hidden`, or of the depth before.
            tokens: i32[B, T], for each hidden state the token that its own logits are for.
            segment_ids: i32[B, T], as in a plain call.
            positions: i32[B, T] of `tokens`; None counts from 1 + depth, behind a cache.
            cache: of `zoo.cache.init_draft` for this depth, as in a plain call.

        Returns:
            `Output` with `logits` None.
        """
        if positions is None:
            start = jnp.int32(depth + 1) if cache is None else cache.lengths[:, None] + depth + 1
            positions = jnp.broadcast_to(start + jnp.arange(tokens.shape[1]), tokens.shape)
        context, name = self._context(tokens, segment_ids, positions, cache), f"mtp_{depth}"
        held = None if cache is None else cache.stacks[name]
        hidden, arranged = zigzag.arrange((hidden, tokens), context.slots)
        hidden, held, aux = getattr(self, name)(hidden, self._embedded(arranged), held, context)
        hidden = hidden if self.cfg.mtp_norm else self.final_norm(hidden)
        cache = advanced(cache, {name: held}, tokens, segment_ids)
        hidden = zigzag.restore(hidden, context.slots)
        return Output(None, cache, {name: aux} if aux else {}, hidden)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """dtype[B, T, D] after the final norm -> f32[B, T, V]."""
        cfg = self.cfg
        w = self.embed.table.T if cfg.tie_embeddings else self.head.array(hidden)
        logits = jax.lax.dot_general(
            hidden, w.astype(self.dtype), (((hidden.ndim - 1,), (0,)), ((), ())),
            precision=precision(self.dtype), preferred_element_type=jnp.float32,
        )  # fmt: skip
        if cfg.head_bias:
            logits = logits + self.head.b.astype(jnp.float32)
        if cfg.logit_scale != 1.0:
            logits = logits * cfg.logit_scale
        if cfg.logit_softcap is not None:
            logits = cfg.logit_softcap * jnp.tanh(logits / cfg.logit_softcap)
        return nn.with_logical_constraint(logits, ("batch", "length", "vocab"))

    def _everything(self, tokens: jax.Array, *args, **kwargs) -> Output:
        """A plain call that touches every parameter, for `init`."""
        out = self.hidden(tokens, *args, **kwargs)
        hidden = out.hidden
        for depth in range(len(self.cfg.mtp)):
            hidden = self.draft(depth, hidden, tokens).hidden
        return out._replace(logits=self.logits(out.hidden))

    def _embedded(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        if self.cfg.embed_scale != 1.0:
            x = x * jnp.asarray(self.cfg.embed_scale, self.dtype)
        return nn.with_logical_constraint(x, ACTIVATION_AXES)

    def _all_chosen(self, tokens: jax.Array, cache: Cache | None) -> jax.Array | None:
        """What `Carried.chosen` starts as, where it is needed."""
        if not self.cfg.shares_choice:
            return None
        return jnp.ones((*tokens.shape, tokens.shape[1] if cache is None else slots(cache)), bool)

    def _context(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array | None,
        positions: jax.Array | None,
        cache: Cache | None,
    ) -> Context:
        filling = cache is not None and slots(cache) == tokens.shape[1]
        offset = None if cache is None or filling else cache.lengths
        if positions is None:
            start = 0 if offset is None else offset[:, None]
            positions = start + jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        whole = cache is not None or self.is_initializing()
        order = None if whole else zigzag.slots(tokens.shape[1])
        positions, segment_ids = zigzag.arrange((positions, segment_ids), order)
        turns = tuple(rope.tables(r, positions, self.dtype) for r in self.cfg.ropes)
        return Context(turns, positions, offset, segment_ids, order)

    def _run(self, i: int, carried: Carried, held: Any, context: Context):
        stack, alone = self.cfg.stacks[i], held is not None or self.is_initializing()
        if pipeline.divides(stack.repeats) and not alone and not self.unstacked:
            pattern = Pattern(stack, self.cfg, self.dtype, self.param_dtype, parent=None)
            params = self.variables["params"][f"stack_{i}"]
            how = self.remat, self.microbatches, self.rounds
            carried, aux = stacks.staged(pattern, params, carried, context, *how)
            return carried, None, aux
        if not self.unstacked:
            pattern, how = getattr(self, f"stack_{i}"), (stack.repeats, self.unroll)
            return stacks.scanned(pattern, *how, carried, held, context)
        new, found = [], []
        for r in range(self.cfg.stacks[i].repeats):
            one = None if held is None else held[r]
            carried, (one, aux) = getattr(self, f"stack_{i}_{r}")(carried, one, context)
            new.append(one)
            found.append(aux)
        aux = jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)
        return carried, None if held is None else tuple(new), aux
