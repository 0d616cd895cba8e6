"""The gated delta rule (Gated DeltaNet, arXiv:2412.06464; Kimi Delta Attention, arXiv:2510.26692).

Axes: B batch, T tokens, D embedding, K key heads, G value heads per key head, H key channels, P
value channels, W tokens of the convolution; N chunks of C tokens. A is 1 where a decay is per value
head, H where it is per key channel (KDA).

Each value head has a state S[H, P]. A token lets it decay, and writes what it gets wrong:

    S <- exp(decay) S;  S <- S + beta k (v - S'k)';  out = S'q

`delta_rule_step` says that, `delta_rule_chunked` the same in matrix products over chunks. Padding
(segment 0) neither decays nor writes. State and convolution begin anew where a segment begins, so
padding stands before or behind a segment, not within one.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.cache import Recurrent
from zoo.config import GatedDelta
from zoo.layers import ACTIVATIONS, GATES, Linear, Normalize, precision

CHUNK = 64
"""Tokens of a chunk: pairs of tokens within one, the state from one to the next."""

BLOCK = 8
"""Tokens of a block, in which decays per channel are taken pair by pair. It divides CHUNK."""

EXACT = jax.lax.Precision.HIGHEST


class GatedDeltaNet(nn.Module):
    """x[B, T, D] -> [B, T, D], with an optional cache of the state."""

    spec: GatedDelta
    dim: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        turn: None = None,
        *,
        positions: jax.Array | None = None,
        cache: Recurrent | None = None,
        offset: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, Recurrent | None]:
        """Continues from the cache, or from nothing.

        Args:
            x: dtype[B, T, D].
            turn: of all mixers, unused: the order of tokens is their position.
            positions: likewise.
            cache: `Recurrent`, the state before x.
            offset: as `positions`.
            segment_ids: i32[B, T], documents packed in a row, 0 for padding; the first goes on from
                the cache.

        Returns:
            dtype[B, T, D] and the state after the last token of each row.
        """
        spec, batch = self.spec, x.shape[0]
        heads = (spec.k_heads, spec.v_heads // spec.k_heads)
        held = self._empty(batch, heads) if cache is None else cache
        q, k, v, conv = self._convolved(x, heads, held.conv, segment_ids)
        beta = jax.nn.sigmoid(self._linear(x, "beta", heads)).astype(jnp.float32)
        decay = self._decay(x, heads)
        starts = None
        if segment_ids is not None:
            real = (segment_ids > 0)[:, :, None, None]
            beta, decay = jnp.where(real, beta, 0.0), jnp.where(real[..., None], decay, 0.0)
            starts = segment_starts(segment_ids)
        q, k = (unit(t.astype(jnp.float32)) for t in (q, k))
        q, v = q * spec.k_dim**-0.5, v.astype(jnp.float32)
        if x.shape[1] == 1:
            one = (t[:, 0] for t in (q, k, v, decay, beta))
            out, state = delta_rule_step(*one, held.state)
            out = out[:, None]
        else:
            out, state = delta_rule_chunked(
                q, k, v, decay, beta, held.state, starts, precision(self.dtype)
            )
        out = out.astype(self.dtype)
        out = Normalize((spec.v_dim,), spec.norm, param_dtype=self.param_dtype, name="norm")(out)
        gate = self._linear(x, "gate", (*heads, spec.v_dim), spec.gate_rank).astype(jnp.float32)
        act = GATES[spec.gate_act]
        out = (out * act(gate)).astype(self.dtype)
        shape = ((*heads, spec.v_dim), (self.dim,), ("heads", "groups", "head_dim", "embed"))
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        out = Linear(*shape, **types, name="o")(out)
        return out, None if cache is None else Recurrent(conv.astype(cache.conv.dtype), state)

    def _empty(self, batch: int, heads: tuple[int, int]) -> Recurrent:
        spec = self.spec
        conv = jnp.zeros((batch, spec.conv - 1, spec.channels), self.dtype)
        return Recurrent(conv, jnp.zeros((batch, *heads, spec.k_dim, spec.v_dim), jnp.float32))

    def _linear(self, x, name: str, sizes: tuple[int, ...], rank: int | None = None) -> jax.Array:
        """x to heads of these sizes, directly or through a low rank."""
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        axes = ("heads", "groups", "head_dim")[: len(sizes)]
        if rank is None:
            return Linear((self.dim,), sizes, ("embed", *axes), **types, name=name)(x)
        x = Linear((self.dim,), (rank,), ("embed", "rank"), **types, name=f"{name}_down")(x)
        return Linear((rank,), sizes, ("rank", *axes), **types, name=f"{name}_up")(x)

    def _convolved(self, x, heads: tuple[int, int], past: jax.Array, segment_ids):
        """q, k and v after their convolution, and its newest inputs."""
        spec, types = self.spec, dict(dtype=self.dtype, param_dtype=self.param_dtype)
        key, value = ((spec.k_heads, spec.k_dim), (*heads, spec.v_dim))
        inputs, kernels = [], []
        for name, sizes in (("q", key), ("k", key), ("v", value)):
            axes = ("heads", "head_dim") if len(sizes) == 2 else ("heads", "groups", "head_dim")
            taps = Linear((spec.conv,), sizes, ("norm", *axes), **types, name=f"{name}_conv")
            y = Linear((self.dim,), sizes, ("embed", *axes), **types, name=name)(x)
            inputs.append(y.reshape(*x.shape[:2], -1))
            kernels.append(taps.array(x).reshape(spec.conv, -1))
        mixed, kernel = jnp.concatenate(inputs, axis=-1), jnp.concatenate(kernels, axis=-1)
        mixed, past = causal_convolution(mixed, kernel, past.astype(self.dtype), segment_ids)
        ends = (math.prod(key), 2 * math.prod(key))
        parts = jnp.split(ACTIVATIONS[spec.act](mixed), ends, axis=-1)
        q, k, v = (
            part.reshape(*x.shape[:2], *sizes)
            for part, sizes in zip(parts, (key, key, value), strict=True)
        )
        return q, k, v, past

    def _decay(self, x: jax.Array, heads: tuple[int, int]) -> jax.Array:
        """-exp(a_log) softplus(x w + dt_bias), the logarithm of the decay, f32[B, T, K, G, A]."""
        spec = self.spec
        sizes = heads if spec.decay_rank is None else (*heads, spec.k_dim)
        axes = ("heads", "groups", "head_dim")[: len(sizes)]
        step = nn.with_logical_partitioning(_step_bias, axes)
        rate = nn.with_logical_partitioning(_log_rate, axes[:2])
        dt_bias = self.param("dt_bias", step, sizes, self.param_dtype).astype(jnp.float32)
        a_log = self.param("a_log", rate, heads, self.param_dtype).astype(jnp.float32)
        steps = self._linear(x, "decay", sizes, spec.decay_rank).astype(jnp.float32)
        steps = jax.nn.softplus(steps + dt_bias)
        steps = steps if len(sizes) == 3 else steps[..., None]
        return -jnp.exp(a_log)[..., None] * steps


def delta_rule_step(
    q: jax.Array, k: jax.Array, v: jax.Array, decay: jax.Array, beta: jax.Array, state: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One token.

    Args:
        q: f32[B, K, H], scaled.
        k: f32[B, K, H].
        v: f32[B, K, G, P].
        decay: f32[B, K, G, A], logarithms, at most 0.
        beta: f32[B, K, G], in 0..1.
        state: f32[B, K, G, H, P].

    Returns:
        out f32[B, K, G, P] and the new state.
    """
    state = state * jnp.exp(decay)[..., None]
    error = v - jnp.einsum("bkh,bkghp->bkgp", k, state, precision=EXACT)
    state = state + k[:, :, None, :, None] * (beta[..., None] * error)[..., None, :]
    return jnp.einsum("bkh,bkghp->bkgp", q, state, precision=EXACT), state


def delta_rule_chunked(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    decay: jax.Array,
    beta: jax.Array,
    state: jax.Array,
    starts: jax.Array | None = None,
    exact: jax.lax.Precision = EXACT,
) -> tuple[jax.Array, jax.Array]:
    """T tokens, chunk by chunk (arXiv:2412.06464 section 3.3, the extended WY representation).

    What the tokens of a chunk write solves a unit triangular system, for all chunks at once; a scan
    then takes the state from chunk to chunk.

    Args:
        q: f32[B, T, K, H], scaled.
        k: f32[B, T, K, H].
        v: f32[B, T, K, G, P].
        decay: f32[B, T, K, G, A], logarithms, at most 0.
        beta: f32[B, T, K, G], in 0..1.
        state: f32[B, K, G, H, P], before the first token.
        starts: bool[B, T], tokens that see nothing of what came before.
        exact: precision of the products.

    Returns:
        out f32[B, T, K, G, P] and the state after the last token.
    """
    length = q.shape[1]
    size = min(CHUNK, -(-length // BLOCK) * BLOCK)
    starts = jnp.zeros(q.shape[:2], bool) if starts is None else starts
    rows = (
        q[:, :, :, None],
        k[:, :, :, None],
        v,
        decay,
        beta[..., None],
        starts[..., None, None, None],
    )
    q, k, v, decay, beta, starts = (_chunks(x, size) for x in rows)
    faded = jnp.cumsum(decay, axis=-2)  # from before the chunk to each of its tokens
    begun = jnp.cumsum(starts, axis=-2)  # segments, likewise
    alike = (begun == begun.swapaxes(-1, -2)) & jnp.tril(jnp.ones((size, size), bool))
    qk, kk = _scores(q, k, faded, alike, exact)

    entering = jnp.where(begun == 0, jnp.exp(faded), 0.0)  # what is left of the state before
    rest = jnp.where(begun == begun[..., -1:, :], jnp.exp(faded[..., -1:, :] - faded), 0.0)
    known = jnp.concatenate((v, jnp.broadcast_to(k * entering, v.shape[:-1] + k.shape[-1:])), -1)
    solved = jax.scipy.linalg.solve_triangular(
        beta * kk, beta * known, lower=True, unit_diagonal=True
    )
    written, erased = jnp.split(solved, (v.shape[-1],), axis=-1)

    def advance(state, chunk):
        query, qk, written, erased, key, left = chunk
        written = written - jnp.matmul(erased, state, precision=exact)
        out = jnp.matmul(query, state, precision=exact) + jnp.matmul(qk, written, precision=exact)
        added = jnp.matmul(key.swapaxes(-1, -2), written, precision=exact)
        return state * left[..., None] + added, out

    chunks = (q * entering, qk, written, erased, k * rest, entering[..., -1, :])
    state, out = jax.lax.scan(advance, state, chunks)
    out = out.transpose(1, 0, 4, 2, 3, 5)  # [N, B, K, G, C, P] -> [B, N, C, K, G, P]
    return out.reshape(out.shape[0], -1, *out.shape[3:])[:, :length], state


def causal_convolution(
    x: jax.Array, kernel: jax.Array, past: jax.Array, segment_ids: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Each channel of a token and of those before it in its segment, weighed and summed.

    Args:
        x: [B, T, F].
        kernel: [W, F], the last row for the token itself.
        past: [B, W - 1, F], inputs before x, of the segment that x begins with.
        segment_ids: i32[B, T], 0 for padding.

    Returns:
        [B, T, F], and the inputs [B, W - 1, F] up to the last token that is not padding.
    """
    width, length = kernel.shape[0], x.shape[1]
    whole = jnp.concatenate((past, x), axis=1)
    if segment_ids is None:
        taps = (whole[:, i : i + length] for i in range(width))
        return sum(tap * row for tap, row in zip(taps, kernel, strict=True)), whole[:, length:]
    ids = jnp.concatenate((jnp.repeat(segment_ids[:, :1], width - 1, axis=1), segment_ids), axis=1)
    y = sum(
        jnp.where((ids[:, i : i + length] == segment_ids)[..., None], whole[:, i : i + length], 0)
        * kernel[i]
        for i in range(width)
    )
    end = jnp.where(segment_ids > 0, jnp.arange(1, length + 1), 0).max(-1)
    cut = jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, width - 1))
    newest = cut(ids, end)
    return y, jnp.where((newest == newest[:, -1:])[..., None], cut(whole, end), 0)


def segment_starts(segment_ids: jax.Array) -> jax.Array:
    """bool[B, T]: tokens at which another segment begins within the row."""
    before = jnp.concatenate((segment_ids[:, :1], segment_ids[:, :-1]), axis=1)
    return (segment_ids != before) & (segment_ids > 0)


def unit(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis (`l2norm` of modeling_qwen3_next.py)."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


def _chunks(x: jax.Array, size: int) -> jax.Array:
    """[B, T, K, G, X] -> [N, B, K, G, C, X], zeros behind the last token."""
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % size), *[(0, 0)] * 3])
    return x.reshape(x.shape[0], -1, size, *x.shape[2:]).transpose(1, 0, 3, 4, 2, 5)


def _scores(q, k, faded, alike, exact) -> tuple[jax.Array, jax.Array]:
    """q k' and k k' of the pairs of a chunk, faded from the earlier token to the later.

    [N, B, K, G, C, C], 0 where not `alike`. One decay per head factors out of the products, which
    value heads share then; decays per channel do not.
    """
    if faded.shape[-1] == 1:
        fading = jnp.exp(jnp.where(alike, faded - faded.swapaxes(-1, -2), -jnp.inf))
        qk, kk = (jnp.matmul(x, k.swapaxes(-1, -2), precision=exact) for x in (q, k))
        return qk * fading, kk * fading

    @jax.checkpoint
    def one(chunk):
        q, k, faded = chunk
        return _scores_by_channel(q, k, faded, exact), _scores_by_channel(k, k, faded, exact)

    qk, kk = jax.lax.map(one, (q, k, faded))  # in turn, for memory's sake
    return jnp.where(alike, qk, 0.0), jnp.where(alike, kk, 0.0)


def _scores_by_channel(q, k, faded, exact) -> jax.Array:
    """Sum over h of q_ih k_jh exp(faded_ih - faded_jh) for j <= i, [..., C, C]; 0 elsewhere.

    Neither exp(faded) nor its inverse alone is safe: their range is that of the whole chunk's
    decay. Split at the first token of i's block, both factors are at most 1 for j before the block;
    within the block, pairs are taken one by one.
    """
    size, blocks = q.shape[-2], q.shape[-2] // BLOCK

    def blocked(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-2], blocks, BLOCK, x.shape[-1])

    q, rows, columns = blocked(q), blocked(faded), blocked(k)
    first = rows[..., :1, :]
    earlier = jnp.arange(size) < BLOCK * jnp.arange(blocks)[:, None]  # [blocks, C]
    fading = jnp.where(earlier[..., None], first - faded[..., None, :, :], -jnp.inf)
    before = jnp.einsum(
        "...ich,...ijh->...icj",
        q * jnp.exp(rows - first),
        k[..., None, :, :] * jnp.exp(fading),
        precision=exact,
    )
    fading = rows[..., :, None, :] - rows[..., None, :, :]
    fading = jnp.where(jnp.tril(jnp.ones((BLOCK, BLOCK), bool))[..., None], fading, -jnp.inf)
    within = (q[..., :, None, :] * columns[..., None, :, :] * jnp.exp(fading)).sum(-1)
    within = (
        within[..., None, :] * jnp.eye(blocks)[:, None, :, None]
    )  # to its place on the diagonal
    return (before + within.reshape(before.shape)).reshape(*before.shape[:-3], size, size)


def _log_rate(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """log of 1 .. 16, evenly spread (Mamba-2, arXiv:2405.21060)."""
    return jnp.log(jax.random.uniform(key, shape, jnp.float32, 1.0, 16.0)).astype(dtype)


def _step_bias(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """What softplus takes to steps between 0.001 and 0.1, evenly spread in logarithms."""
    steps = jnp.exp(jax.random.uniform(key, shape, jnp.float32, math.log(1e-3), math.log(1e-1)))
    return (steps + jnp.log(-jnp.expm1(-steps))).astype(dtype)
