"""Counts of compiled programs against hand computations, XLA's own, and what the mesh must move."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import zoo
from zoo.plan import hlo

M, K, N = 24, 40, 56
PRODUCT = 2 * M * K * N


def compiled(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    return jax.jit(function).lower(*arguments).compile()


def test_a_loop_counts_as_often_as_it_runs():
    def looped(x, ws):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]

    program = compiled(looped, (M, K), (7, K, K))
    assert hlo.count(program.as_text()).flops == 7 * 2 * M * K * K
    assert program.cost_analysis()["flops"] < 2 * 2 * M * K * K, "XLA counts it right by now"


def test_products_are_what_xla_counts_without_loops():
    program = compiled(lambda a, b, c: jnp.einsum("bmk,bkn->bmn", a, b) @ c,
                       (3, M, K), (3, K, N), (N, K))  # fmt: skip
    found = hlo.count(program.as_text()).flops
    assert found == 3 * (PRODUCT + 2 * M * N * K)
    assert program.cost_analysis()["flops"] == pytest.approx(found, rel=0.01)


def test_collectives_have_kinds_axes_and_bytes():
    """x[M, K/4] @ w[K/4, N] on fsdp leaves sums to reduce, and data replicates."""
    mesh = zoo.make_mesh("data=2,fsdp=4")

    def place(*spec):
        return NamedSharding(mesh, PartitionSpec(*spec))

    x = jax.ShapeDtypeStruct((M, K), jnp.float32, sharding=place(None, "fsdp"))
    w = jax.ShapeDtypeStruct((K, N), jnp.float32, sharding=place("fsdp", "data"))
    out = place(None, None)
    program = jax.jit(lambda x, w: x @ w, out_shardings=out).lower(x, w).compile()
    found = hlo.count(program.as_text(), list(mesh.shape.items()))
    assert found.flops == PRODUCT / 8
    by_kind = {one.kind: one for one in found.collectives}
    assert by_kind["all-reduce"].axes == ("fsdp",)
    assert by_kind["all-reduce"].bytes == 4 * M * N / 2
    assert by_kind["all-reduce"].sent == 2 * 4 * M * N / 2 * 3 / 4
    assert by_kind["all-gather"].axes == ("data",)
    assert by_kind["all-gather"].bytes == 4 * M * N


TPU = """HloModule jit_step, is_scheduled=true

%fused.1 (param_0: bf16[64,8]) -> bf16[128,8] {
  %param_0 = bf16[64,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[128,8]{1,0:T(8,128)(2,1)} all-gather(%param_0), channel_id=7, \
replica_groups=mesh['axis_0'=2,'axis_1'=2], device_ids=([2,2]T(1,0)) {'axis_0'}, dimensions={0}
}

%again.1 (param_0.1: bf16[64,8]) -> bf16[128,8] {
  %param_0.1 = bf16[64,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[128,8]{1,0:T(8,128)(2,1)} all-gather(%param_0.1), channel_id=7, \
replica_groups=mesh['axis_0'=2,'axis_1'=2], device_ids=([2,2]T(1,0)) {'axis_0'}, dimensions={0}
}

%condition (loop: (s32[], bf16[64,8])) -> pred[] {
  %loop = (s32[], bf16[64,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%loop), index=0
  %bound = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

%body (loop.1: (s32[], bf16[64,8])) -> (s32[], bf16[64,8]) {
  %loop.1 = (s32[], bf16[64,8]{1,0}) parameter(0)
  %x = bf16[64,8]{1,0} get-tuple-element(%loop.1), index=1
  %start = bf16[128,8]{1,0} fusion(%x), kind=kCustom, calls=%fused.1
  %done = bf16[128,8]{1,0} fusion(%x), kind=kCustom, calls=%again.1
  %splash_mha_fwd.3 = bf16[4,16,64,128]{3,2,1,0:T(8,128)(2,1)} custom-call(%x), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="jit(step)/while/body"}
  %q = bf16[4,64,16,128]{3,2,1,0} convolution(%left, %right), window={size=1x16 pad=0_0x15_15 \
rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f
  %left = bf16[4,64,8,1]{3,2,1,0} bitcast(%start)
  %right = bf16[8,16,128,1]{3,2,1,0} bitcast(%done)
  ROOT %out = (s32[], bf16[64,8]{1,0}) tuple(%x, %x)
}

ENTRY %main (p: (s32[], bf16[64,8])) -> (s32[], bf16[64,8]) {
  %p = (s32[], bf16[64,8]{1,0}) parameter(0)
  ROOT %while.1 = (s32[], bf16[64,8]{1,0}) while(%p), condition=%condition, body=%body
}
"""


RING = """HloModule jit_step, is_scheduled=true

%joined.1 (param_0: bf16[8]) -> bf16[8] {
  %param_0 = bf16[8]{0:T(8)} parameter(0)
  ROOT %all-reduce.1 = bf16[8]{0:T(8)} all-reduce(%param_0), channel_id=1, \
replica_groups={{0,1},{2,3}}, to_apply=%add
}

%joined.2 (param_0.1: bf16[8]) -> bf16[8] {
  %param_0.1 = bf16[8]{0:T(8)} parameter(0)
  ROOT %all-reduce.2 = bf16[8]{0:T(8)} all-reduce(%param_0.1), channel_id=1, \
replica_groups={{0,1},{2,3}}, to_apply=%add
}

ENTRY %main (k: bf16[64], v: bf16[64], x: bf16[8], y: bf16[8]) -> (bf16[64], bf16[64]) {
  %k = bf16[64]{0:T(64)} parameter(0)
  %v = bf16[64]{0:T(64)} parameter(1)
  %x = bf16[8]{0:T(8)} parameter(2)
  %y = bf16[8]{0:T(8)} parameter(3)
  %more = bf16[8]{0:T(8)} fusion(%x), kind=kCustom, calls=%joined.1
  %most = bf16[8]{0:T(8)} fusion(%y), kind=kCustom, calls=%joined.2
  %k.1 = bf16[64]{0:T(64)} collective-permute(%k), channel_id=1, \
source_target_pairs={{0,0},{1,2},{2,3},{3,1}}, metadata={op_name="ppermute"}
  %v.1 = bf16[64]{0:T(64)} collective-permute(%v), channel_id=1, \
source_target_pairs={{0,0},{1,2},{2,3},{3,1}}, metadata={op_name="ppermute"}
  ROOT %out = (bf16[64]{0:T(64)}, bf16[64]{0:T(64)}) tuple(%k.1, %v.1)
}
"""


def test_what_shares_a_channel_is_several():
    """Keys and values on their way around a ring, and sums that XLA joined."""
    found = hlo.count(RING, [("fsdp", 2), ("context", 2)]).collectives
    assert found == [
        hlo.Collective("all-reduce", ("context",), 2, 2, 2 * 8 * 2),
        hlo.Collective("collective-permute", ("fsdp", "context"), 2, 2, 2 * 64 * 2, 2 * 64 * 2),
    ]


def test_text_of_a_tpu():
    """Loops without known trips, one collective in two fusions, kernels, products of heads."""
    found = hlo.count(TPU, [("data", 2), ("fsdp", 2)])
    assert found.kernels == {"splash_mha_fwd": 5}
    assert found.flops == 5 * 2 * 4 * 64 * 8 * 16 * 128
    (gather,) = found.collectives
    assert (gather.kind, gather.axes, gather.size) == ("all-gather", ("fsdp",), 2)
    assert (gather.calls, gather.bytes) == (5, 5 * 128 * 8 * 2)


LOOP = """HloModule jit_step, is_scheduled=true

%condition (loop: (s32[], bf16[64,8], s32[])) -> pred[] {
  %loop = (s32[], bf16[64,8]{1,0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%loop), index=0
  %known = s32[] constant(7)
  %none = s32[] constant(0)
  %asked = s32[] get-tuple-element(%loop), index=2
  ROOT %less = pred[] compare(@COMPARED@)
}

%body (loop.1: (s32[], bf16[64,8], s32[])) -> (s32[], bf16[64,8], s32[]) {
  %loop.1 = (s32[], bf16[64,8]{1,0}, s32[]) parameter(0)
  %at = s32[] get-tuple-element(%loop.1), index=0
  %x = bf16[64,8]{1,0} get-tuple-element(%loop.1), index=1
  %last = s32[] get-tuple-element(%loop.1), index=2
  %two = s32[] constant(2)
  %next = s32[] add(%at, %two)
  %y = bf16[64,64]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  ROOT %out = (s32[], bf16[64,8]{1,0}, s32[]) tuple(%next, %x, /*index=2*/%last)
}

ENTRY %main (x: bf16[64,8], n: s32[]) -> (s32[], bf16[64,8], s32[]) {
  %x.1 = bf16[64,8]{1,0} parameter(0)
  %n = s32[] parameter(1)
  %one = s32[] constant(@START@)
  %first = s32[] copy(%one)
  %given = (s32[], bf16[64,8]{1,0}, s32[]) tuple(%first, %x.1, /*index=2*/%n)
  ROOT %while.1 = (s32[], bf16[64,8]{1,0}, s32[]) while(%given), condition=%condition, body=%body
}
"""


@pytest.mark.parametrize(
    ("compared", "start", "runs"),
    [
        ("%i, %known), direction=LT", 0, 4),
        ("%i, %known), direction=LT", 1, 3),
        ("%i, %asked), direction=LT", 0, 1),
        ("%i, %none), direction=GT", 0, 1),
        ("%i, %known), direction=NE", 0, 1),
    ],
)
def test_a_loop_that_is_not_known_to_end_counts_once(compared, start, runs):
    """Others count from where they start, in their steps."""
    text = LOOP.replace("@COMPARED@)", compared).replace("@START@", str(start))
    assert hlo.count(text).flops == runs * 2 * 64 * 64 * 8


@pytest.mark.parametrize(("sent", "kept"), [(48, 512), (512, 48)])
def test_ragged_rows_are_those_that_there_are(sent, kept):
    """To the devices of their experts, and home: one side of both is a buffer for the worst."""
    text = f"""HloModule jit_step

ENTRY %main (rows: bf16[{sent},16], at: s32[4]) -> bf16[{kept},16] {{
  %rows = bf16[{sent},16]{{1,0}} parameter(0)
  %at = s32[4]{{0}} parameter(1)
  %empty = bf16[{kept},16]{{1,0}} broadcast()
  ROOT %r = bf16[{kept},16]{{1,0}} ragged-all-to-all(%rows, %empty, %at, %at, %at, \
/*index=5*/%at), channel_id=1, replica_groups={{{{0,1,2,3}}}}
}}
"""
    found = hlo.count(text, [("expert", 4)]).collectives
    moved = 48 * 16 * 2
    assert found == [hlo.Collective("ragged-all-to-all", ("expert",), 4, 1, moved, moved)]


PARTS = """HloModule jit_step, is_scheduled=true

%product (p: bf16[64,8]) -> bf16[64,64] {
  %p = bf16[64,8]{1,0} parameter(0)
  ROOT %y = bf16[64,64]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={1}, \
backend_config={"window_config":{"estimated_cycles":"1000000"}}
}

%around (q: bf16[64,8]) -> bf16[64,64] {
  %q = bf16[64,8]{1,0} parameter(0)
  ROOT %inner = bf16[64,64]{1,0} fusion(%q), kind=kOutput, calls=%product
}

%moved (r: bf16[64,8]) -> bf16[64,8] {
  %r = bf16[64,8]{1,0} parameter(0)
  %beside = bf16[64,8]{1,0} all-gather(%r), channel_id=3, replica_groups={{0,1}}, dimensions={0}
  ROOT %s = bf16[64,8]{1,0} negate(%r)
}

%condition (loop: (s32[], bf16[64,8])) -> pred[] {
  %loop = (s32[], bf16[64,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%loop), index=0
  %bound = s32[] constant(4)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

%body (loop.1: (s32[], bf16[64,8])) -> (s32[], bf16[64,8]) {
  %loop.1 = (s32[], bf16[64,8]{1,0}) parameter(0)
  %x = bf16[64,8]{1,0} get-tuple-element(%loop.1), index=1
  %waited = bf16[64,8]{1,0} all-gather(%x), channel_id=4, replica_groups={{0,1}}, dimensions={0}
  @LAYER@
  ROOT %out = (s32[], bf16[64,8]{1,0}) tuple(%x, %x)
}

ENTRY %main (g: (s32[], bf16[64,8])) -> (s32[], bf16[64,8]) {
  %g = (s32[], bf16[64,8]{1,0}) parameter(0)
  %after = bf16[64,8]{1,0} multiply(%g), metadata={op_name="jit(step)/mul"}, \
backend_config={"window_config":{"estimated_cycles":"7"}}
  ROOT %while.1 = (s32[], bf16[64,8]{1,0}) while(%g), condition=%condition, body=%body
}
"""


@pytest.mark.parametrize(
    ("named", "calls", "part"),
    [
        ("jvp(Decoder.hidden)/layer_0/ffn/mlp/gate/dot_general", "around", "MLP, products"),
        ("jvp(Decoder.hidden)/layer_0/ffn/mlp/gate/dot_general", "moved", "MLP, moving data"),
        ("Decoder._run/while/body/ffn/moe/shard_map/mul", "moved", "experts, elementwise"),
        ("attention/layer_0._mixed/attn/attn._projected/q/dot_general", "product",
         "attention, projections, products"),
        ("attention/layer_0._mixed/attn/attn._projected/q/dot_general", "moved",
         "attention, the rest, moving data"),
        ("attention/layer_0._mixed/attn/dot_general", "product", "attention, the rest, products"),
        ("attention/layer_0._mixed/attn/q_norm/rsqrt", "moved",
         "norms and residuals, elementwise"),
        ("jvp()/while/body/closed_call/dot_general", "product",
         "embedding, head and loss, products"),
        ("Decoder._run/while/body/jit(f)/dynamic_update_slice", "moved",
         "between layers, or unnamed, moving data"),
        (None, "moved", "between layers, or unnamed, moving data"),
    ],
)  # fmt: skip
def test_cycles_are_those_of_what_cores_do(named, calls, part):
    """Each as often as it runs, by parts of the model; not again what a fusion is made of."""
    name = "" if named is None else f'metadata={{op_name="jit(step)/{named}"}}, '
    line = f'%f = bf16[64,8]{{1,0}} fusion(%x), calls=%{calls}, {name}backend_config={{"a":\
{{"estimated_cycles":"100"}}}}'
    found = hlo.count(PARTS.replace("@LAYER@", line), [("fsdp", 2)])
    cycles = {", ".join(key): value for key, value in found.cycles.items()}
    assert cycles == {part: 4 * 100, "optimizer, elementwise": 7}
    (gather,) = found.collectives
    assert gather.alone == 4 * 64 * 8 * 2
    assert gather.bytes == (2 if calls == "moved" else 1) * gather.alone


@pytest.mark.parametrize(
    ("kernel", "products"),
    [("splash_mha_fwd_residuals", 2), ("splash_mha_dq_no_residuals", 3), ("splash_mha_dkv", 4)],
)
def test_attention_kernels_by_hand(kernel, products):
    """Two products per pair of a query and a key forward, three and four backward, on 8 heads."""
    shapes = ("s8[1,4,4]", "bf16[2,8,512,64]", "bf16[2,4,512,64]", "bf16[2,4,512,64]", "s32[2,512]")
    given = ", ".join(f"{shape} %p{i}" for i, shape in enumerate(shapes))
    line = f'%{kernel}.1 = bf16[64,8] custom-call({given}), custom_call_target="tpu_custom_call"'
    found = hlo.count(PARTS.replace("@LAYER@", line))
    assert found.attended == 4 * products * 2 * (2 * 8 * 512) * 512 * 64
    assert not found.given
    other = hlo.count(PARTS.replace("@LAYER@", line.replace(kernel, "unknown")))
    assert sum(other.given.values()) == 4 * (16 + 2 * (2 * 8 + 2 * 8) * 512 * 64 + 4 * 2 * 512)
