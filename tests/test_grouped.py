"""Grouped products on three platforms against dense ones, and what they cost on CPU."""

import contextlib
import functools
import importlib.util
import itertools
import re
import sys

import jax
import jax.experimental.pallas
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from zoo import grouped, grouped_cpu, grouped_gpu, grouped_tpu, kernels
from zoo.layered import Layered

INTERPRETED = {"interpret": True}
PLATFORMS = {
    "cpu": (grouped_cpu, {}),
    "cuda": (grouped_gpu, INTERPRETED),
    "tpu": (grouped_tpu, INTERPRETED),
}
GROUPS = {
    "ragged": (100, [0, 33, 0, 20, 1, 46, 0]),
    "rows of no group": (100, [10, 33, 0, 20, 1, 0, 0]),
    "one group": (300, [0, 300, 0]),
    "one row each": (8, [1, 1, 0, 1, 1, 1, 0, 1, 1, 1]),
    "no rows": (100, [0] * 7),
}


def dense(lhs, rhs, group_sizes):
    """The grouped product as an einsum over all experts, in float32."""
    ends = jnp.cumsum(group_sizes)
    row = jnp.arange(lhs.shape[0])[:, None]
    owner = (row >= ends - group_sizes) & (row < ends)
    return jnp.einsum(
        "md,edf,me->mf", *(x.astype(jnp.float32) for x in (lhs, rhs, owner)), precision="highest"
    )


def close(got, want, dtype):
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
    scale = max(1.0, float(np.abs(want).max()))
    np.testing.assert_allclose(
        np.asarray(got, np.float32) / scale, np.asarray(want) / scale, atol=tolerance
    )


@functools.cache
def products(platform):
    """The three products of a platform in one program, which serves all groups of as many rows."""
    module, options = PLATFORMS[platform]

    @jax.jit
    def run(lhs, rhs, grad, sizes):
        return (
            module.gmm(lhs, rhs, sizes, **options),
            module.gmm_transposed(grad, rhs, sizes, **options),
            module.tgmm(lhs, grad, sizes, **options),
        )

    return run


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_products_equal_dense(rng, platform, groups, dtype):
    rows, sizes = GROUPS[groups]
    shapes = (rows, 40), (len(sizes), 40, 136), (rows, 136)
    lhs, rhs, grad = (rng.normal(size=shape).astype(dtype) for shape in shapes)
    lhs[sum(sizes) :] = grad[sum(sizes) :] = np.nan  # rows of no group are not looked at
    found = products(platform)(lhs, rhs, grad, np.asarray(sizes, np.int32))
    lhs, rhs, grad = (x.astype(np.float32) for x in (lhs, rhs, grad))
    wanted = np.zeros_like(grad), np.zeros_like(lhs), np.zeros_like(rhs)
    for expert, (start, stop) in enumerate(itertools.pairwise(np.cumsum([0, *sizes]))):
        wanted[0][start:stop] = lhs[start:stop] @ rhs[expert]
        wanted[1][start:stop] = grad[start:stop] @ rhs[expert].T
        wanted[2][expert] = lhs[start:stop].T @ grad[start:stop]
    for got, want in zip(found, wanted, strict=True):
        close(got, want, dtype)


@pytest.mark.parametrize("sizes", [(700, 5), (1500, 0), (129, 576)])
def test_large_groups_on_cpu(rng, sizes):
    lhs = jnp.asarray(rng.normal(size=(1500, 12)), jnp.float32)
    rhs = jnp.asarray(rng.normal(size=(2, 12, 20)), jnp.float32)
    sizes = jnp.asarray(sizes, jnp.int32)

    def loss(product):
        return lambda lhs, rhs: jnp.sin(product(lhs, rhs, sizes)).sum()

    got = jax.value_and_grad(loss(kernels.grouped_matmul), argnums=(0, 1))(lhs, rhs)
    want = jax.value_and_grad(loss(dense), argnums=(0, 1))(lhs, rhs)
    jax.tree.map(lambda g, w: close(g, w, jnp.float32), got, want)


def test_matrices_of_experts_without_rows_are_not_read(rng):
    sizes = jnp.asarray([0, 2, 0, 1], jnp.int32)
    rhs = jnp.asarray(rng.normal(size=(4, 12, 20)), jnp.float32)
    rhs = jnp.where((sizes > 0)[:, None, None], rhs, jnp.nan)
    lhs = jnp.asarray(rng.normal(size=(3, 12)), jnp.float32)
    assert np.isfinite(kernels.grouped_matmul(lhs, rhs, sizes)).all()


def mlp_case(rng, tokens=15, chosen=2, experts=6, dim=16, hidden=24, dtype=jnp.float32):
    """Tokens, chosen experts, their weights, and the three matrices of every expert."""

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape) / shape[-2] ** 0.5, dtype)

    ids = np.argsort(rng.normal(size=(tokens, experts)))[:, :chosen]
    weights = jnp.asarray(rng.uniform(size=(tokens, chosen)), jnp.float32)
    gate, up = normal(experts, dim, hidden), normal(experts, dim, hidden)
    x = jnp.asarray(rng.normal(size=(tokens, dim)), dtype)
    return x, jnp.asarray(ids, jnp.int32), weights, gate, up, normal(experts, hidden, dim)


def dense_mlp(x, ids, weights, gate, up, down):
    mix = jnp.einsum("tc,tce->te", weights, jax.nn.one_hot(ids, gate.shape[0]))
    hidden = jax.nn.silu(jnp.einsum("td,edf->tef", x, gate)) * jnp.einsum("td,edf->tef", x, up)
    return jnp.einsum("tef,efd,te->td", hidden, down, mix)


def as_dense(x, ids, *rest):
    """Asserts that `expert_mlp` and all its gradients are those of a dense mixture."""

    def loss(mlp):
        return lambda x, *rest: jnp.sin(mlp(x, ids, *rest)).sum()

    arguments = tuple(range(5))
    with jax.default_matmul_precision("highest"):
        got = jax.jit(jax.value_and_grad(loss(grouped.expert_mlp), arguments))(x, *rest)
        want = jax.value_and_grad(loss(dense_mlp), arguments)(x, *rest)
    jax.tree.map(lambda g, w: close(g, w, jnp.float32), got, want)


@pytest.mark.parametrize("dropped", [False, True])
def test_expert_mlp_and_gradients_equal_dense(rng, dropped):
    x, ids, *rest = mlp_case(rng)
    if dropped:
        ids = ids.at[::3].set(6).at[1, 1].set(9)
    as_dense(x, ids, *rest)
    if dropped:
        assert not grouped.expert_mlp(x, ids, *rest)[::3].any()


def test_expert_mlp_in_bfloat16_keeps_its_type(rng):
    case = mlp_case(rng, dtype=jnp.bfloat16)
    y = grouped.expert_mlp(*case)
    assert y.dtype == jnp.bfloat16
    close(y, dense_mlp(*(c.astype(jnp.float32) if c.dtype != jnp.int32 else c for c in case)),
          jnp.bfloat16)  # fmt: skip


def layers(x, ids, weights, gate, up, down):
    """A loss through three layers of experts, scanned and rematerialised."""
    stacked = tuple(jnp.stack([w, 0.5 * w, -w]) for w in (gate, up, down))

    @jax.checkpoint
    def layer(x, matrices):
        return x + grouped.expert_mlp(x, ids, weights, *matrices).astype(x.dtype), None

    return lax.scan(layer, x, stacked)[0].astype(jnp.float32).var()


def test_gradient_through_scan_and_remat(rng):
    case = mlp_case(rng, dim=12, hidden=8)

    def unrolled(x, ids, weights, gate, up, down):
        for scale in (1, 0.5, -1):
            x = x + dense_mlp(x, ids, weights, scale * gate, scale * up, scale * down)
        return x.var()

    arguments = (0, 2, 3, 4, 5)
    got = jax.jit(jax.value_and_grad(layers, arguments))(*case)
    want = jax.value_and_grad(unrolled, arguments)(*case)
    jax.tree.map(lambda g, w: close(g, w, jnp.float32), got, want)


def of_gpus() -> dict:
    """What an AbstractMesh needs to know: newer JAX lowers Triton kernels for a GPU it can name;
    older takes any."""
    if jax.__version_info__ < (0, 11):
        return {}
    return {"abstract_device": jax.sharding.AbstractDevice("NVIDIA H100", None, "gpu")}


def gpu_to_lower_for():
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), **of_gpus()))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("platform", "kernel"), [("cpu", None), ("cuda", "triton"), ("tpu", "tpu_custom_call")]
)
def test_exports_with_the_kernel_of_the_platform(rng, platform, kernel, dtype):
    case = mlp_case(rng, dtype=dtype)
    unstable = [export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]
    step = jax.jit(jax.value_and_grad(layers, argnums=(0, 2, 3, 4, 5)))
    with gpu_to_lower_for() if platform == "cuda" else contextlib.nullcontext():
        program = export.export(step, platforms=[platform], disabled_checks=unstable)(*case)
    text = program.mlir_module()
    assert "ragged_dot" not in text
    for name in ("triton", "tpu_custom_call"):
        assert (name in text) == (name == kernel)


def test_without_triton_experts_still_lower_for_a_gpu(monkeypatch):
    """As in a JAX to come: there is nothing to import."""
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
    monkeypatch.delattr(jax.experimental.pallas, "triton", raising=False)
    spec = importlib.util.spec_from_file_location("grouped_without_triton", grouped_gpu.__file__)
    without = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(without)
    assert without.triton is None
    monkeypatch.setattr(kernels, "grouped_gpu", without)
    shapes = [((8, 16), jnp.float32), ((2, 16, 16), jnp.float32), ((2,), jnp.int32)]
    arguments = [jax.ShapeDtypeStruct(*of) for of in shapes]
    traced = jax.jit(kernels._by_platform("gmm")).trace(*arguments)
    with gpu_to_lower_for():
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "while" in text
    assert "triton" not in text


def executed_flops(fun, *args):
    """Follows the CPU program of fun(*args), group sizes being known, and counts products' flops.

    Loops run as often as they would: their conditions depend on the group sizes alone. Matrices are
    never computed, only their shapes are known.
    """
    total = 0

    def run(closed, inputs):
        nonlocal total
        values = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
        values.update(zip(closed.jaxpr.invars, inputs, strict=True))

        def read(atom):
            return atom.val if hasattr(atom, "val") else values[atom]

        for eqn in closed.jaxpr.eqns:
            name, params = eqn.primitive.name, eqn.params
            inputs, shapes = [read(x) for x in eqn.invars], [x.aval.shape for x in eqn.invars]
            if name == "while":
                conditions, bodies = params["cond_nconsts"], params["body_nconsts"]
                fixed, out = inputs[: conditions + bodies], inputs[conditions + bodies :]
                while run(params["cond_jaxpr"], fixed[:conditions] + out)[0]:
                    out = run(params["body_jaxpr"], fixed[conditions:] + out)
            elif name == "cond":
                out = run(params["branches"][int(inputs[0])], inputs[1:])
            elif name == "platform_index":
                assert params["platforms"][-1] is None, "the CPU takes the default"
                out = [len(params["platforms"]) - 1]
            elif "call_jaxpr" in params or "jaxpr" in params:
                out = run(params["call_jaxpr" if "call_jaxpr" in params else "jaxpr"], inputs)
            elif any(x is None for x in inputs) or any(len(x.aval.shape) > 1 for x in eqn.outvars):
                out = [None] * len(eqn.outvars)
            else:
                out = eqn.primitive.bind(*inputs, **params)
                out = out if eqn.primitive.multiple_results else [out]
            if name == "dot_general":
                contracted = [shapes[0][axis] for axis in params["dimension_numbers"][0][0]]
                total += 2 * int(np.prod([*eqn.outvars[0].aval.shape, *contracted]))
            if name == "reduce_sum" and len(shapes[0]) == 2:
                total += 2 * int(np.prod(shapes[0]))
            values.update(zip(eqn.outvars, out, strict=True))
        return [read(x) for x in closed.jaxpr.outvars]

    known = [x if x.ndim == 1 else None for x in args]
    run(jax.make_jaxpr(fun)(*args), known)
    return total


def forward_and_backward(lhs, rhs, group_sizes, grad):
    out, pull = jax.vjp(lambda lhs, rhs: kernels.grouped_matmul(lhs, rhs, group_sizes), lhs, rhs)
    return out, pull(grad)


def skewed(rng, experts, mean):
    """One huge group, and the others at the sizes that waste most."""
    small = rng.choice([1, 17, 33, 49, 65], size=experts - 1)
    small = small[np.cumsum(small) < experts * mean]
    sizes = np.zeros(experts, np.int32)
    sizes[: small.size] = small
    sizes[-1] = experts * mean - small.sum()
    return sizes


SPREADS = {
    "even": lambda rng, experts, mean: np.full(experts, mean, np.int32),
    "random": lambda rng, experts, mean: rng.multinomial(
        experts * mean, rng.dirichlet(np.full(experts, 5.0))
    ),
    "worst": lambda rng, experts, mean: np.full(experts, mean + 1, np.int32),
    "skewed": skewed,
    "one": lambda rng, experts, mean: (
        np.eye(experts, dtype=np.int32)[experts // 2] * experts * mean
    ),
}


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize(("experts", "mean"), [(8, 64), (8, 700), (32, 64), (128, 64)])
def test_executed_flops_stay_near_the_active_ones(rng, experts, mean, spread):
    sizes = np.asarray(SPREADS[spread](rng, experts, mean), np.int32)
    assert 1 <= cost(sizes) <= 1.3


@pytest.mark.parametrize("mean", [1, 3, 9, 17, 33, 63])
def test_executed_flops_of_small_groups(rng, mean):
    assert 1 <= cost(np.full(16, mean, np.int32)) <= 2
    assert 1 <= cost(np.asarray(rng.integers(0, 2 * mean, size=16), np.int32)) <= 2


def cost(sizes, dim=24, hidden=40):
    """Executed over active flops, forward and backward."""
    rows = int(sizes.sum())
    lhs, grad = jnp.ones((rows, dim)), jnp.ones((rows, hidden))
    rhs = jnp.ones((sizes.size, dim, hidden))
    executed = executed_flops(forward_and_backward, lhs, rhs, jnp.asarray(sizes), grad)
    return executed / (3 * 2 * rows * dim * hidden)


@pytest.mark.parametrize("product", [kernels.grouped_matmul, PLATFORMS["tpu"]])
def test_experts_are_found_among_those_of_all_layers(rng, product):
    """Of three layers the last and the middle one, with groups of no rows at either end."""
    if product is not kernels.grouped_matmul:
        product = functools.partial(product[0].gmm, **product[1])
    rows, sizes = GROUPS["rows of no group"]
    sizes = jnp.array([0, *sizes], jnp.int32)
    lhs, whole = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((rows, 24), (3, len(sizes), 24, 40))
    )
    run = jax.jit(lambda at: product(lhs, Layered(whole, at), sizes))
    for at in (2, 1):
        close(run(jnp.int32(at)), dense(lhs, whole[at], sizes), jnp.float32)


def test_gradients_reach_experts_among_those_of_all_layers(rng):
    sizes = jnp.array([2, 0, 3], jnp.int32)
    lhs, whole = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((6, 8), (2, 3, 8, 4)))

    def slope(product):
        return jax.grad(lambda lhs, whole: jnp.sin(product(lhs, whole)).sum(), argnums=(0, 1))

    among = lambda lhs, whole: kernels.grouped_matmul(lhs, Layered(whole, jnp.int32(1)), sizes)  # noqa: E731
    got = slope(among)(lhs, whole)
    want = slope(lambda lhs, whole: dense(lhs, whole[1], sizes))(lhs, whole)
    jax.tree.map(lambda g, w: close(g, w, jnp.float32), got, want)


@pytest.mark.parametrize("alone", [False, True])
def test_decoding_costs_one_row_per_choice(rng, alone):
    sizes = jnp.asarray(rng.permutation([1] * 8 + [0] * 120), jnp.int32)
    lhs, rhs = jnp.ones((8, 24)), jnp.ones((128, 24, 40))
    product = functools.partial(kernels.grouped_matmul, alone=alone)
    assert executed_flops(product, lhs, rhs, sizes) == 2 * 8 * 24 * 40


@pytest.mark.parametrize("dropped", [False, True])
def test_one_token_and_its_gradients_equal_dense(rng, dropped):
    x, ids, *rest = mlp_case(rng, tokens=1, chosen=3)
    ids = ids.at[0, 1].set(6) if dropped else ids
    as_dense(x, ids, *rest)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rows_that_share_no_group_need_no_blocks(rng, dtype):
    rows, sizes = 5, jnp.asarray([0, 1, 0, 1, 1, 0])
    lhs, rhs = (jnp.asarray(rng.normal(size=s), dtype) for s in ((rows, 40), (6, 40, 24)))
    lhs = lhs.at[3:].set(jnp.nan)  # rows of no group are not looked at
    got = jax.jit(grouped_cpu.gmm_alone)(lhs, rhs, sizes)
    close(got, grouped_cpu.gmm(lhs, rhs, sizes).astype(jnp.float32), dtype)
    assert not got[3:].any()


def test_the_experts_of_one_token_are_three_loops_without_choices(rng):
    """A step of a loop is short on CPU, and what surrounds it is not."""
    x, ids, *rest = mlp_case(rng, tokens=1, chosen=3)
    text = jax.jit(grouped.expert_mlp).lower(x, ids, *rest).compile().as_text()
    assert text.count(" while(") == 3


@pytest.mark.parametrize("experts", [8, 128])
def test_no_compiled_product_spans_experts(experts):
    """The largest product in the compiled program is one block of rows times one matrix."""
    rows, dim, hidden = 8192, 24, 40
    shapes = [(rows, dim), (experts, dim, hidden), (experts,), (rows, hidden)]
    types = [jnp.float32, jnp.float32, jnp.int32, jnp.float32]
    arguments = [jax.ShapeDtypeStruct(*case) for case in zip(shapes, types, strict=True)]
    text = jax.jit(forward_and_backward).lower(*arguments).compile().as_text()
    block = max(grouped_cpu.block_sizes(rows, experts)[0])
    shape = {
        name: [int(n) for n in dims.split(",") if n]
        for name, dims in re.findall(r"%?([\w.-]+) = \w+\[([\d,]*)\]", text)
    }
    shape |= {
        name: [int(n) for n in dims.split(",") if n]
        for name, dims in re.findall(r"%?([\w.-]+): \w+\[([\d,]*)\]", text)
    }
    products = re.findall(
        r"= \w+\[([\d,]*)\][^=]* dot\([^%)]*%?([\w.-]+),.*lhs_contracting_dims={([\d,]*)}", text
    )
    assert len(products) > 20
    for dims, left, contracted in products:
        flops = 2 * np.prod([int(n) for n in dims.split(",")])
        flops *= np.prod([shape[left][int(n)] for n in contracted.split(",")])
        assert flops <= 2 * block * dim * hidden


@pytest.mark.parametrize("tokens", [8, grouped.FEW // 16 + 1])
def test_choices_are_counted_where_they_are_few_and_where_they_are_many(tokens, rng):
    experts = rng.integers(0, 9, (tokens, 2))  # the last are dropped
    order = grouped.sort_by_expert(jnp.asarray(experts), 8)
    assert order.group_sizes.tolist() == np.bincount(experts.ravel(), minlength=9)[:8].tolist()
