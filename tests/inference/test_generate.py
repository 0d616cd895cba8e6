"""Generation against forward passes without a cache, and alone against in a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.examples import CONFIGS, random_params
from tests.inference.test_engine import is_greedy
from zoo import cache
from zoo.inference import unstack
from zoo.inference.generate import BUCKET, _How, _program, pad
from zoo.inference.sampling import from_options

PROMPTS = [[3, 14, 15, 92, 65], [35], list(range(40))]


def test_greedy_text_is_that_of_a_forward_pass(made):
    model, params, _ = made
    texts = zoo.generate(model, params, PROMPTS, 12)
    assert [len(text) for text in texts] == [12] * len(PROMPTS)
    assert is_greedy(model, params, PROMPTS, texts)


@pytest.fixture(scope="module")
def small():
    model = zoo.Decoder(CONFIGS["mla_moe"])
    return model, random_params(model)


def test_rows_do_not_depend_on_their_batch(small):
    together = zoo.generate(*small, PROMPTS, 12)
    assert together == [zoo.generate(*small, [prompt], 12)[0] for prompt in PROMPTS]


def test_stops_at_eos_and_keeps_it(small):
    free = zoo.generate(*small, PROMPTS, 12)
    stop = free[0][4]
    held = zoo.generate(*small, PROMPTS, 12, eos=[stop, 96])
    for whole, cut in zip(free, held, strict=True):
        ends = [i for i, token in enumerate(whole) if token in (stop, 96)]
        assert cut == (whole[: ends[0] + 1] if ends else whole)
    assert len(held[0]) <= 5


def test_sampling_is_reproducible_and_follows_the_key(small):
    draw = lambda seed: zoo.generate(  # noqa: E731
        *small, PROMPTS, 12, temperature=1.5, top_k=50, top_p=0.95, rng=jax.random.key(seed)
    )
    assert draw(0) == draw(0)
    assert draw(0) != draw(1)


def test_top_k_of_one_is_greedy(small):
    greedy = zoo.generate(*small, PROMPTS, 12)
    assert zoo.generate(*small, PROMPTS, 12, temperature=2.0, top_k=1) == greedy


def test_one_program_serves_prompts_of_a_bucket_and_all_temperatures(small):
    zoo.generate(*small, PROMPTS, 5, temperature=1.0)
    before = _program._cache_size()
    zoo.generate(*small, [p[:-1] or p for p in PROMPTS], 5, temperature=0.3)
    assert _program._cache_size() == before


def test_bfloat16_runs_and_stacked_parameters_inside_jit_do_too(small):
    model, params = small
    made = zoo.generate(model.clone(dtype=jnp.bfloat16), params, PROMPTS, 4)
    assert [len(row) for row in made] == [4, 4, 4]


@pytest.mark.parametrize(
    ("prompts", "options", "says"),
    [
        ([], {}, "prompts is empty"),
        ([[1], []], {}, "prompt 1 is empty"),
        ([1, 2], {}, "prompt 0 is 1: prompts are lists of token ids"),
        ([[1], [1.5]], {}, r"prompt 1 is \[1.5\]"),
        ([[1, 97]], {}, "token 97, outside the vocabulary of 97"),
        ([[-1]], {}, "token -1, outside"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ([[1]], {"max_new_tokens": 2048}, "would pass the model's max_length=2048"),
        ([[1]], {"temperature": -1.0}, "temperature=-1.0 must be positive"),
        ([[1]], {"temperature": 1.0, "top_k": 0}, "top_k=0 must be at least 1"),
        ([[1]], {"temperature": 1.0, "top_k": 1.5}, "top_k=1.5 must be a whole number"),
        ([[1]], {"temperature": 1.0, "top_p": 1.5}, "top_p=1.5 must be above 0"),
        ([[1]], {"temperature": 1.0, "top_p": 1e-46}, "top_p=1e-46 must be above 0"),
        ([[1]], {"cache_dtype": jnp.int16}, "cache_dtype=int16 must be int8 or a float type"),
        ([[1]], {"cache_dtype": "foo"}, "cache_dtype='foo' must be int8 or .*: float32, float16"),
        ([[1]], {"temperature": 1.0, "min_p": 0.0}, "min_p=0.0 must be above 0"),
    ],
)
def test_bad_input_is_refused_before_work(small, prompts, options, says):
    with pytest.raises(ValueError, match=says):
        zoo.generate(*small, prompts, **options)


def compiled(cfg: zoo.Config, new: int) -> jax.stages.Compiled:
    """The program that generates so many tokens from a single short prompt."""
    model = zoo.Decoder(cfg)
    model, params = unstack.prepare(model, random_params(model))
    how = _How(new, jnp.dtype("float32"), ())
    options = from_options(0.0, None, None, None), np.zeros(0, np.int32), jax.random.key(0), how
    return _program.lower(model, params, *pad([[1, 2, 3]]), *options).compile()


@pytest.mark.parametrize("kind", ["dense", "mla", "delta"])
def test_the_loop_over_tokens_holds_the_cache_of_a_text_once(kind):
    """XLA on CPU copies buffers that it has to write and to reshape, in every step."""
    cfg, new = CONFIGS[kind], 4096
    used = compiled(cfg, new).memory_analysis().temp_size_in_bytes
    size = cache.bytes_per_token(cfg, jnp.float32) * (BUCKET + new)
    print(kind, used / size)
    assert used < 1.3 * size


def test_the_loop_over_tokens_copies_no_matrix_of_latent_attention():
    """XLA on CPU transposes what it multiplies by head, of all layers at once and in every step."""
    mixer = zoo.MLA(8, None, 128, 64, 8, 64, zoo.Rope(8))
    layers = zoo.Stack(4, (zoo.Layer(mixer, zoo.MLP(64)),))
    used = compiled(zoo.Config(64, 32, (layers,)), 8).memory_analysis().temp_size_in_bytes
    matrices = 4 * 2 * 4 * 8 * 128 * 64  # bytes of k_up and v_up
    print(used / matrices)
    assert used < matrices / 2
