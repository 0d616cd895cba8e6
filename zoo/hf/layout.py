"""The shapes of a model's parameters, from its Config alone.

Paths and shapes are those of `Decoder.init` (a test compares them); computing them here takes
microseconds, needs no tracing, and lets a checkpoint be checked before anything is read.
"""

from __future__ import annotations

import dataclasses
import math

from zoo.config import (
    MLA,
    MLP,
    Attention,
    Config,
    GatedDelta,
    Indexer,
    Layer,
    LayerNorm,
    MoE,
    Norm,
)  # fmt: skip

Shape = tuple[int, ...]


def shapes(cfg: Config) -> dict[str, Shape]:
    """Every parameter's path ("stack_0/layer_0/attn/q/w") and shape, in the order of the model."""
    d = cfg.embed_dim
    found: dict[str, Shape] = {"embed/table": (cfg.vocab_size, d)}
    for i, stack in enumerate(cfg.stacks):
        for j, layer in enumerate(stack.layers):
            for path, shape in layer_shapes(layer, d).items():
                found[f"stack_{i}/layer_{j}/{path}"] = (stack.repeats, *shape)
    for k, layer in enumerate(cfg.mtp):
        found |= _predictor(cfg, layer, f"mtp_{k}")
    found |= _norm(cfg.norm, "final_norm", d)
    if not cfg.tie_embeddings:
        found["head/w"] = (d, cfg.vocab_size)
    if cfg.head_bias:
        found["head/b"] = (cfg.vocab_size,)
    return found


def count(cfg: Config, active: bool = False) -> int:
    """Parameters in all, or those that one token uses (of the experts, the chosen ones).

    As in papers, those of multi-token prediction are not counted.
    """
    total = 0
    for path, shape in shapes(dataclasses.replace(cfg, mtp=())).items():
        n = math.prod(shape)
        if active and path.split("/")[-3:-1] in (["moe", part] for part in ("gate", "up", "down")):
            n = n * _top_k(cfg, path) // shape[1]
        total += n
    return total


def layer_shapes(layer: Layer, d: int) -> dict[str, Shape]:
    """One layer's parameters without the leading axis of its stack."""
    mixer = _MIXERS[type(layer.mixer)](layer.mixer, d)
    ffn = _mlp(layer.ffn, d, "mlp") if isinstance(layer.ffn, MLP) else _moe(layer.ffn, d)
    norms = {}
    for name in layer.norms:
        norms |= _norm(layer.norm, name, d)
    return {**norms, **mixer, **ffn}


def _predictor(cfg: Config, layer: Layer, prefix: str) -> dict[str, Shape]:
    d, found = cfg.embed_dim, {}
    for name in ("embed_norm", "hidden_norm", *(("norm",) if cfg.mtp_norm else ())):
        found |= _norm(cfg.norm, f"{prefix}/{name}", d)
    inner = {f"{prefix}/layer_0/{path}": shape for path, shape in layer_shapes(layer, d).items()}
    return {**found, f"{prefix}/proj/w": (2 * d, d), **inner}


def _norm(norm: Norm | LayerNorm, prefix: str, *sizes: int) -> dict[str, Shape]:
    if isinstance(norm, LayerNorm):
        return {f"{prefix}/scale": sizes, f"{prefix}/b": sizes}
    return {f"{prefix}/scale": sizes} if norm.scaled else {}


def _attention(a: Attention, d: int) -> dict[str, Shape]:
    n, k, h = a.heads, a.kv_heads, a.head_dim
    own = {"q": n} if a.share_kv else {"q": n, "k": k, "v": k}
    each = {name: (heads, a.value_dim if name == "v" else h) for name, heads in own.items()}
    found = {f"attn/{name}/w": (d, *sizes) for name, sizes in each.items()}
    found["attn/o/w"] = (n, a.value_dim, d)
    if a.qkv_bias:
        found |= {f"attn/{name}/b": sizes for name, sizes in each.items()}
    if a.o_bias:
        found["attn/o/b"] = (d,)
    if a.gated:
        found["attn/gate/w"] = (d, n) if a.gate_heads else (d, n, a.value_dim)
    if a.sinks:
        found["attn/sinks"] = (n,)
    if a.qk_norm is not None:
        for name in ("q",) if a.share_kv else ("q", "k"):
            sizes = (own[name], h) if a.norm_heads else (h,)
            found |= _norm(a.qk_norm, f"attn/{name}_norm", *sizes)
    return found


def _mla(a: MLA, d: int) -> dict[str, Shape]:
    n, r, qk = a.heads, a.kv_rank, a.nope_dim + a.rope_dim
    if a.q_rank is None:
        found = {"attn/q/w": (d, n, qk)}
    else:
        found = {
            "attn/q_down/w": (d, a.q_rank),
            "attn/q_norm/scale": (a.q_rank,),
            "attn/q_up/w": (a.q_rank, n, qk),
        }
    found |= {
        "attn/kv_down/w": (d, r),
        "attn/kv_norm/scale": (r,),
        "attn/k_rope/w": (d, a.rope_dim),
        "attn/k_up/w": (r, n, a.nope_dim),
        "attn/v_up/w": (r, n, a.v_dim),
        "attn/o/w": (n, a.v_dim, d),
    }
    if a.bias:
        if a.q_rank is not None:
            found["attn/q_down/b"] = (a.q_rank,)
        found |= {"attn/kv_down/b": (r,), "attn/k_rope/b": (a.rope_dim,), "attn/o/b": (d,)}
    return found if a.indexer is None else found | _indexer(a.indexer, a.q_rank, d)


def _indexer(a: Indexer, rank: int, d: int) -> dict[str, Shape]:
    return {
        "attn/indexer/q/w": (rank, a.heads, a.dim),
        "attn/indexer/k/w": (d, a.dim),
        "attn/indexer/k_norm/scale": (a.dim,),
        "attn/indexer/k_norm/b": (a.dim,),
        "attn/indexer/weigh/w": (d, a.heads),
    }


def _delta(a: GatedDelta, d: int) -> dict[str, Shape]:
    heads = (a.k_heads, a.v_heads // a.k_heads)
    key, value = (a.k_heads, a.k_dim), (*heads, a.v_dim)
    found: dict[str, Shape] = {}
    for name, sizes in (("q", key), ("k", key), ("v", value)):
        found |= {f"delta/{name}/w": (d, *sizes), f"delta/{name}_conv/w": (a.conv, *sizes)}
    decays = heads if a.decay_rank is None else (*heads, a.k_dim)
    found |= {"delta/beta/w": (d, *heads), "delta/a_log": heads, "delta/dt_bias": decays}
    found |= _through(a.decay_rank, "decay", d, decays) | _through(a.gate_rank, "gate", d, value)
    return found | _norm(a.norm, "delta/norm", a.v_dim) | {"delta/o/w": (*value, d)}


def _through(rank: int | None, name: str, d: int, sizes: Shape) -> dict[str, Shape]:
    """A projection to `sizes`, directly or through a low rank."""
    if rank is None:
        return {f"delta/{name}/w": (d, *sizes)}
    return {f"delta/{name}_down/w": (d, rank), f"delta/{name}_up/w": (rank, *sizes)}


_MIXERS = {Attention: _attention, MLA: _mla, GatedDelta: _delta}


def _mlp(m: MLP, d: int, prefix: str) -> dict[str, Shape]:
    f = m.hidden
    found = {f"{prefix}/gate/w": (d, f), f"{prefix}/up/w": (d, f), f"{prefix}/down/w": (f, d)}
    if m.bias:
        found |= {f"{prefix}/gate/b": (f,), f"{prefix}/up/b": (f,), f"{prefix}/down/b": (d,)}
    return found


def _moe(m: MoE, d: int) -> dict[str, Shape]:
    e, f = m.experts, m.hidden
    found: dict[str, Shape] = {"moe/router/w": (d, e)}
    if m.router_bias:
        found["moe/router/b"] = (e,)
    if m.select_bias:
        found["moe/bias/b"] = (e,)
    found |= {"moe/gate/w": (e, d, f), "moe/up/w": (e, d, f), "moe/down/w": (e, f, d)}
    if m.bias:
        found |= {"moe/gate/b": (e, f), "moe/up/b": (e, f), "moe/down/b": (e, d)}
    if m.shared is not None:
        found |= _mlp(m.shared, d, "moe/shared")
    if m.shared_gate:
        found["moe/shared_gate/w"] = (d, 1)
    return found


def _top_k(cfg: Config, path: str) -> int:
    stack, layer = (int(part.split("_")[1]) for part in path.split("/")[:2])
    return cfg.stacks[stack].layers[layer].ffn.top_k
