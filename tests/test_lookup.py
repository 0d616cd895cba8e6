"""Lookups in an embedding that is cut over devices: those of one device, and the table stays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

import zoo
from zoo import sharding
from zoo.axes import partition_spec
from zoo.lookup import lookup
from zoo.plan import hlo


@pytest.mark.parametrize("spec", ["fsdp=2,tensor=2,context=2", "data=2,fsdp=4", "fsdp=2,expert=4"])
def test_lookups_and_gradients_equal_those_of_one_device(rng, spec):
    """And nothing as large as the table travels: neither it nor its gradient but for a part of it,
    over devices that have the same part."""
    table, weights = (rng.normal(size=s).astype(np.float32) for s in ((640, 64), (8, 4, 64)))
    tokens = rng.integers(0, 640, (8, 4)).astype(np.int32)
    tokens[0] = 7  # one row of the table gets the gradients of several tokens

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(table, tokens):
        found = lookup(table, tokens, jnp.float32)
        return (found * weights).sum(), found

    want = jax.jit(loss)(table, tokens)
    mesh, rules = zoo.make_mesh(spec), sharding.find_rules(None)
    lie = [
        NamedSharding(mesh, partition_spec(names, rules))
        for names in (("vocab", "embed"), ("batch", "length"))
    ]
    given = jax.device_put((table, tokens), tuple(lie))
    with sharding.use(mesh):
        program = jax.jit(loss, out_shardings=(None, lie[0])).lower(*given).compile()
        got = program(*given)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)
    np.testing.assert_array_equal(got[0][1], want[0][1])
    found = hlo.count(program.as_text(), list(mesh.shape.items())).collectives
    part = table.nbytes // np.prod([mesh.shape[axis] for axis in ("fsdp", "tensor")])
    most = max(part, tokens.size * 64 * 4) + 4  # and the loss
    assert max(one.bytes for one in found) <= most
    assert not [one for one in found if one.kind == "all-gather" and one.bytes > tokens.nbytes]


def test_what_does_not_divide_is_left_to_xla(rng):
    table, tokens = jnp.asarray(rng.normal(size=(64, 16)), jnp.float32), jnp.arange(3)[:, None]
    with sharding.use(zoo.make_mesh("fsdp=8")):
        found = jax.jit(functools.partial(lookup, dtype=jnp.float32))(table, tokens)
    np.testing.assert_array_equal(found, table[:3, None])
