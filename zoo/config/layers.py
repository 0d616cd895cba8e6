"""What a layer is made of: norms, mixers (attention) and feed-forward networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from zoo.config.checks import one_of, positive
from zoo.config.positions import Rope, Temperature

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
Score = Literal["softmax", "sigmoid", "sparsemixer"]
GroupScore = Literal["top2", "max"]
GateActivation = Literal["silu", "sigmoid", "softplus"]


@dataclass(frozen=True)
class Norm:
    """RMSNorm (arXiv:1910.07467): x / rms(x) * (offset + scale), statistics in float32.

    `offset` is 1.0 where files store the scale less one (Gemma). `wide` multiplies in float32 and
    casts back last, instead of the other way round. `scaled=False` has no parameter at all.
    """

    eps: float = 1e-6
    offset: float = 0.0
    wide: bool = False
    scaled: bool = True

    def __post_init__(self):
        positive(self, "eps")


@dataclass(frozen=True)
class LayerNorm:
    """LayerNorm (arXiv:1607.06450) with a scale and a bias, in float32 until the cast back."""

    eps: float = 1e-5

    def __post_init__(self):
        positive(self, "eps")


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention (arXiv:2305.13245).

    Attributes:
        window: keeps the last `window` tokens, the token itself included.
        chunk: keeps the tokens of the same chunk of so many (Llama 4).
        qk_norm: normalises each head of q and k, before the rotation or, with `norm_after_rope`,
            after it; with `norm_heads` all heads of a token together (OLMo 2).
        clip: bound on the magnitude of v, and of q and k after a norm before the rotation (OLMo).
        scale: multiplies the scores; None is head_dim**-0.5.
        softcap: c * tanh(scores / c) bounds the scores (Gemma 2).
        sinks: a learnt score per head that takes part in the softmax and has no value (gpt-oss).
        temperature: a factor on the queries that depends on the position.
        gated: a second projection of x, which multiplies the output through `gate_act`
            (Qwen3-Next); with `gate_heads`, each head as a whole (Laguna).
        v_dim: elements of a value where they are fewer than a key's, None for head_dim; `v_scale`
            multiplies values (MiMo-V2).
        share_kv: takes the keys and values of the layer so many places before it in its stack's
            pattern, and has none of its own, nor a cache (cross-layer attention, arXiv:2405.12981).
    """

    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope | None
    window: int | None = None
    chunk: int | None = None
    qk_norm: Norm | LayerNorm | None = None
    norm_after_rope: bool = False
    norm_heads: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    clip: float | None = None
    scale: float | None = None
    softcap: float | None = None
    sinks: bool = False
    temperature: Temperature | None = None
    gated: bool = False
    gate_act: GateActivation = "sigmoid"
    gate_heads: bool = False
    v_dim: int | None = None
    v_scale: float = 1.0
    share_kv: int | None = None

    def __post_init__(self):
        positive(self, "heads", "kv_heads", "head_dim", "window", "chunk", "share_kv")
        positive(self, "clip", "scale", "softcap", "v_dim", "v_scale")
        one_of(self, "gate_act", get_args(GateActivation))
        if self.heads % self.kv_heads:
            raise ValueError(
                f"Attention.kv_heads={self.kv_heads} must divide heads={self.heads}: every kv head "
                "serves the same number of query heads"
            )
        if self.rope is not None and self.rope.dim > self.head_dim:
            raise ValueError(
                f"Attention.rope.dim={self.rope.dim} must not exceed head_dim={self.head_dim}"
            )
        if self.window is not None and self.chunk is not None:
            raise ValueError(
                f"Attention.window={self.window} and chunk={self.chunk}: choose one of them"
            )

    @property
    def value_dim(self) -> int:
        """Elements of a value."""
        return self.head_dim if self.v_dim is None else self.v_dim


@dataclass(frozen=True)
class Indexer:
    """Chooses the `top_k` tokens that a query of latent attention sees (DeepSeek-V3.2).

    A score of its own, of `heads` queries of size `dim` and one key per token, which the cache
    keeps. `interleaved` pairs neighbours in the rotation (GLM-5), instead of halves.
    """

    heads: int
    dim: int
    top_k: int
    interleaved: bool = False

    def __post_init__(self):
        positive(self, "heads", "dim", "top_k")


@dataclass(frozen=True)
class MLA:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434 section 2.1).

    Caches `kv_rank + rope_dim` values per token instead of expanded heads. `q_rank=None` projects
    the queries directly. `norm` acts on both latents. `scale=None` is (nope_dim + rope_dim)**-0.5.
    `rope=None` leaves positions out (Kimi Linear). `indexer` restricts what a query sees; `follows`
    takes over the choice of the last layer with an indexer (arXiv:2603.12201).
    """

    heads: int
    q_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    rope: Rope | None
    norm: Norm = Norm()
    bias: bool = False
    scale: float | None = None
    temperature: Temperature | None = None
    indexer: Indexer | None = None
    follows: bool = False

    def __post_init__(self):
        positive(self, "heads", "q_rank", "kv_rank", "nope_dim", "rope_dim", "v_dim", "scale")
        if self.rope is not None and self.rope.dim != self.rope_dim:
            raise ValueError(f"MLA.rope.dim={self.rope.dim} must equal rope_dim={self.rope_dim}")
        if self.indexer is not None:
            self._check_indexer(self.indexer)

    def _check_indexer(self, indexer: Indexer) -> None:
        if self.follows:
            raise ValueError("MLA.follows=True and indexer: choose one of them")
        if self.q_rank is None or self.rope is None:
            raise ValueError("MLA.indexer needs q_rank and rope: it reads the queries' latent")
        if indexer.dim < self.rope_dim:
            raise ValueError(
                f"Indexer.dim={indexer.dim} must be at least rope_dim={self.rope_dim}, which it "
                "rotates"
            )


@dataclass(frozen=True)
class GatedDelta:
    """Gated DeltaNet (arXiv:2412.06464), and Kimi Delta Attention (arXiv:2510.26692 section 3).

    A state [k_dim, v_dim] per value head stands for all that came before. A token lets it decay,
    then replaces a part of what it holds for the token's key by the token's value. Positions follow
    from the order alone.

    Attributes:
        k_heads: heads of queries and keys; each serves v_heads / k_heads heads of values.
        conv: tokens that the causal convolution of queries, keys and values spans, the token
            itself included; `act` follows it.
        norm: of each head of the output, which the activated gate multiplies then.
        decay_rank: None decays a value head as a whole; a rank, every channel of its keys by
            itself, by a projection through so many (KDA).
        gate_rank: None projects the gate from x directly; a rank, through so many (KDA).
    """

    k_heads: int
    v_heads: int
    k_dim: int
    v_dim: int
    conv: int = 4
    act: Activation = "silu"
    norm: Norm = Norm()
    gate_act: GateActivation = "silu"
    decay_rank: int | None = None
    gate_rank: int | None = None
    rope: ClassVar[None] = None

    def __post_init__(self):
        positive(self, "k_heads", "v_heads", "k_dim", "v_dim", "decay_rank", "gate_rank")
        one_of(self, "act", get_args(Activation))
        one_of(self, "gate_act", get_args(GateActivation))
        if self.v_heads % self.k_heads:
            raise ValueError(
                f"GatedDelta.k_heads={self.k_heads} must divide v_heads={self.v_heads}: every key "
                "head serves the same number of value heads"
            )
        if self.conv < 2:
            raise ValueError(
                f"GatedDelta.conv={self.conv} must be at least 2: the token and the one before"
            )

    @property
    def channels(self) -> int:
        """Of the convolution: all queries, keys and values of a token."""
        return 2 * self.k_heads * self.k_dim + self.v_heads * self.v_dim


@dataclass(frozen=True)
class ClampedSwiGLU:
    """gpt-oss's gate: g * sigmoid(alpha * g) * (u + 1), with g <= limit and |u| <= limit."""

    alpha: float = 1.702
    limit: float = 7.0

    def __post_init__(self):
        positive(self, "alpha", "limit")


@dataclass(frozen=True)
class MLP:
    """Gated feed-forward network, down(act(gate(x)) * up(x)) (SwiGLU, arXiv:2002.05202)."""

    hidden: int
    act: Activation | ClampedSwiGLU = "silu"
    bias: bool = False

    def __post_init__(self):
        positive(self, "hidden")
        _check_activation(self)


@dataclass(frozen=True)
class MoE:
    """Dropless mixture of experts: each token goes to `top_k` of `experts` MLPs of size `hidden`.

    Attributes:
        score: turns router logits into affinities; "sparsemixer" is Phi-3.5-MoE's choice of two
            (arXiv:2409.12136), each weighed by a softmax over its near competitors.
        renormalize: divides the chosen weights by their sum; `scale` multiplies them then.
        select_bias: adds a bias, learnt by rule, to the choice only and not to the weights
            (DeepSeek-V3, arXiv:2412.19437 section 2.1.2).
        choose_logits: ranks experts by logits, bias included, instead of scores (Kolibri 1).
        groups: of experts, of which the best `top_groups` are chosen from. A group's score is the
            sum of its two best experts, or its best (`group_score`).
        fp32_router: keeps the router's product in float32, `fp32_weights` the weights.
        weigh_input: multiplies an expert's input by its weight, not its output (Llama 4).
        router_bias: a bias on the router's logits; `bias`, biases in the experts.
        shared: an MLP that every token goes through; with `shared_gate`, times sigmoid(x @ w).
        jitter: half the width of sparsemixer's neighbourhood.
    """

    experts: int
    top_k: int
    hidden: int
    act: Activation | ClampedSwiGLU = "silu"
    score: Score = "softmax"
    renormalize: bool = True
    scale: float = 1.0
    select_bias: bool = False
    choose_logits: bool = False
    groups: int = 1
    top_groups: int = 1
    group_score: GroupScore = "top2"
    fp32_router: bool = False
    fp32_weights: bool = False
    weigh_input: bool = False
    router_bias: bool = False
    bias: bool = False
    shared: MLP | None = None
    shared_gate: bool = False
    jitter: float = 0.01

    def __post_init__(self):
        positive(self, "experts", "top_k", "hidden", "scale", "groups", "top_groups", "jitter")
        _check_activation(self)
        one_of(self, "score", get_args(Score))
        one_of(self, "group_score", get_args(GroupScore))
        if self.experts % self.groups:
            raise ValueError(f"MoE.groups={self.groups} must divide experts={self.experts}")
        if self.top_groups > self.groups:
            raise ValueError(
                f"MoE.top_groups={self.top_groups} must not exceed groups={self.groups}"
            )
        reachable = self.experts // self.groups * self.top_groups
        if self.top_k > reachable:
            raise ValueError(
                f"MoE.top_k={self.top_k} must not exceed the {reachable} experts that "
                f"top_groups={self.top_groups} of groups={self.groups} leave to choose from"
            )
        if self.groups > 1 and self.group_score == "top2" and self.experts // self.groups < 2:
            raise ValueError(
                f"MoE.groups={self.groups} of experts={self.experts}: a group is scored by its two "
                "best experts, so it needs at least two"
            )
        if self.score == "sparsemixer" and self.top_k != 2:
            raise ValueError(f"MoE.top_k={self.top_k} must be 2: sparsemixer chooses two experts")
        if self.shared_gate and self.shared is None:
            raise ValueError("MoE.shared_gate=True needs shared: there is nothing to gate")


def _check_activation(value: MLP | MoE) -> None:
    if not isinstance(value.act, ClampedSwiGLU):
        one_of(value, "act", get_args(Activation))
