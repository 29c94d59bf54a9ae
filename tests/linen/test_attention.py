import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import toy_calibration, toy_plan

import jaxdq
from jaxdq.grid import Scheme
from jaxdq.linen import DotProductAttention, Rule, apply, apply_visited, find_sites, make_plan, unfitted_acts
from jaxdq.linen._attention import MANY_QUERIES, MOST, attends_as_in_diffusers
from jaxdq.linen._quantized import QuantizedParams, quantize
from jaxdq.metrics import sqnr_db

ATTENTION = DotProductAttention()


def qkv(length, tokens, heads=2, width=4):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((2, length, heads, width), (2, tokens, heads, width), (2, tokens, heads, width))
    return tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))


def by_hand(q, k, v):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("blhd,bmhd->bhlm", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhlm,bmhd->blhd", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("length", [1, 5, MANY_QUERIES - 1, MANY_QUERIES, MANY_QUERIES + 3])
def test_the_equation_whole_and_in_blocks(length):
    args = qkv(length, 7)
    np.testing.assert_allclose(ATTENTION.apply({}, *args), by_hand(*args), atol=2e-6)


def test_blocks_and_products_agree_and_so_do_their_gradients():
    args = qkv(MANY_QUERIES + MOST, 9)

    def loss(method):
        return lambda *args: jnp.sum(ATTENTION.apply({}, *args, method=method) ** 2)

    for ours, theirs in zip(
        jax.grad(loss("__call__"), (0, 1, 2))(*args), jax.grad(loss("products"), (0, 1, 2))(*args), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.optimized
def test_the_scores_never_stand_in_memory_as_a_whole():
    args = qkv(4096, 4096, heads=1)
    scores = 2 * 4096 * 4096 * 4

    def temporaries(fun):
        return jax.jit(fun).lower(*args).compile().memory_analysis().temp_size_in_bytes

    def backward(method):
        return jax.grad(lambda *args: jnp.sum(ATTENTION.apply({}, *args, method=method)), (0, 1, 2))

    assert temporaries(lambda *args: ATTENTION.apply({}, *args)) < scores / 2
    assert temporaries(backward("__call__")) < scores
    assert temporaries(backward("products")) > scores


def test_its_products_are_sites_that_visitors_see():
    args = qkv(5, 7)
    sites = find_sites(ATTENTION, {}, *args)
    assert [(site.path, site.macs) for site in sites] == [("scores", 5 * 7 * 8), ("values", 5 * 7 * 8)]
    seen = []
    apply_visited(ATTENTION, {}, lambda name, x: seen.append(name) or x, *args)
    assert seen == ["scores:lhs", "scores:rhs", "values:lhs", "values:rhs"]


@pytest.mark.parametrize("act", [None, Scheme(8)])
def test_a_plan_with_integer_products_makes_them_whole(act):
    args = qkv(MANY_QUERIES, 7)
    plan = make_plan([Rule(".*", act=act)], find_sites(ATTENTION, {}, *args))
    qparams = QuantizedParams({}, unfitted_acts(plan.columns, 10, scale=0.05), plan)

    def call(*args):
        return apply(Timed(), qparams, *args)

    class Timed:
        def apply(self, variables, q, k, v, t):
            return ATTENTION.apply(variables, q, k, v)

    text = str(jax.make_jaxpr(call)(*args, 0))
    assert ("preferred_element_type=int32" in text) == (act is not None)
    assert ("scan[" in text) == (act is None)
    np.testing.assert_allclose(jaxdq.apply(Timed(), qparams, *args, 0), by_hand(*args), atol=0.3)


ON_DEVICES = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxdq.linen import DotProductAttention

mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,))
x = jax.device_put(jnp.ones((4, 1024, 2, 8)), NamedSharding(mesh, PartitionSpec("batch")))
text = jax.jit(lambda x: DotProductAttention().apply({}, x, x, x)).lower(x).compile().as_text()
print([name for name in ("all-gather", "all-reduce", "all-to-all") if name in text])
"""


def test_devices_that_share_the_batch_share_the_work():
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    out = subprocess.run([sys.executable, "-c", ON_DEVICES], env=env, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


class FlaxAttention(nn.Module):
    """What others made after diffusers' class: its names, and products of its own."""

    heads: int = 2
    dim_head: int = 4
    dropout: float = 0.0

    def setup(self):
        self.query, self.key, self.value = (
            nn.Dense(self.heads * self.dim_head, use_bias=False, name=name) for name in ("to_q", "to_k", "to_v")
        )
        self.proj_attn = nn.Dense(8, name="to_out_0")

    def __call__(self, hidden_states, context=None, deterministic=True):
        context = hidden_states if context is None else context
        parts = self.query(hidden_states), self.key(context), self.value(context)
        q, k, v = (part.reshape(*part.shape[:2], self.heads, self.dim_head) for part in parts)
        weights = jax.nn.softmax(jnp.einsum("bihd,bjhd->bhij", q, k) * self.dim_head**-0.5)
        return self.proj_attn(jnp.einsum("bhij,bjhd->bihd", weights, v).reshape(*q.shape[:2], -1))


class Products:
    """MaxDiffusion's way to name the products: a kernel of several."""

    def apply_attention(self, q, k, v, heads):
        q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v))
        scores = jnp.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
        return jnp.einsum("bhij,bjhd->bihd", jax.nn.softmax(scores), v).reshape(*q.shape[:2], -1)


def as_in_maxdiffusion(**fields):
    """MaxDiffusion's attention as the seam sees it: its class's name, fields and arguments."""

    class FlaxAttention(nn.Module):
        query_dim: int = 8
        heads: int = 2
        dim_head: int = 4
        dropout: float = 0.0
        attention_kernel: str = "dot_product"
        flash_min_seq_length: int = 4096

        def setup(self):
            self.attention_op = Products()
            init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", "heads"))
            self.query, self.key, self.value = (
                nn.Dense(self.heads * self.dim_head, use_bias=False, kernel_init=init, name=name)
                for name in ("to_q", "to_k", "to_v")
            )
            self.proj_attn = nn.Dense(self.query_dim, name="to_out_0")
            self.dropout_layer = nn.Dropout(self.dropout)

        def __call__(self, hidden_states, context=None, deterministic=True, cross_attention_kwargs=None):
            context = hidden_states if context is None else context
            q, k, v = self.query(hidden_states), self.key(context), self.value(context)
            q = nn.with_logical_constraint(q, ("batch", "length", "heads"))
            mixed = self.attention_op.apply_attention(q, k, v, self.heads)
            return self.dropout_layer(self.proj_attn(mixed), deterministic=deterministic)

    return FlaxAttention(**fields)


class Around(nn.Module):
    """A network of one attention."""

    attention: nn.Module

    @nn.compact
    def __call__(self, x, t, context=None):
        return self.attention(x, context)


def theirs():
    return pytest.importorskip("diffusers.models.attention_flax").FlaxAttention(8, heads=2, dim_head=4)


@pytest.mark.parametrize("make", [theirs, FlaxAttention, as_in_maxdiffusion], ids=["diffusers", "alike", "max"])
@pytest.mark.parametrize("with_context", [False, True])
def test_attention_of_diffusers_classes_goes_in_blocks(make, with_context):
    network = Around(make())
    x = jax.random.normal(jax.random.key(0), (2, MANY_QUERIES, 8))
    context = (jax.random.normal(jax.random.key(1), (2, 7, 8)),) if with_context else ()
    params = nn.unbox(network.init(jax.random.key(2), x, 0, *context)["params"])
    plan = toy_plan(
        network, params, [Rule(".*other.*"), Rule(".*", Scheme(8, channel_axis=-1), Scheme(8))], x, 0, *context
    )
    calib = toy_calibration(network, params, plan, [0], x, 0, *context)
    qparams = quantize(params, calib)
    text = str(jax.make_jaxpr(lambda x: apply(network, qparams, x, 0, *context))(x))
    tokens = 7 if with_context else MANY_QUERIES
    assert f"{MANY_QUERIES},{tokens}]" not in text and "scan[" in text
    assert text.count("preferred_element_type=int32") == 4
    exact = network.apply({"params": params}, x, 0, *context)
    assert sqnr_db(exact, apply(network, qparams, x, 0, *context)) > 25


class Scaled(FlaxAttention):
    scale: float = 1.5


class Masked(FlaxAttention):
    def __call__(self, hidden_states, context=None, deterministic=True, mask=None):
        return super().__call__(hidden_states, context)


class Doubled(FlaxAttention):
    def __call__(self, hidden_states, context=None, deterministic=True):
        return 2 * super().__call__(hidden_states, context)


class Normed(FlaxAttention):
    def setup(self):
        super().setup()
        self.norm = nn.LayerNorm()

    def __call__(self, hidden_states, context=None, deterministic=True):
        return super().__call__(self.norm(hidden_states), context)


@pytest.mark.parametrize("module", [Scaled(), Masked(), Doubled(), Normed(), FlaxAttention(dropout=0.1)])
def test_attention_that_computes_something_else_is_left_alone(module):
    type(module).__name__ = "FlaxAttention"
    x = jnp.ones((1, MANY_QUERIES, 8))
    bound = module.bind(module.init(jax.random.key(0), x))
    assert not attends_as_in_diffusers(bound, x)
    usual = FlaxAttention()
    usual = usual.bind(usual.init(jax.random.key(0), x))
    assert attends_as_in_diffusers(usual, x) and attends_as_in_diffusers(usual, hidden_states=x)
    assert not attends_as_in_diffusers(usual) and not attends_as_in_diffusers(usual, x, x, True, None)
    assert not attends_as_in_diffusers(usual, [1.0])


def test_maxdiffusions_attention_is_taken_over_only_where_it_would_keep_the_scores():
    x = jnp.ones((1, MANY_QUERIES, 8))
    variables = nn.unbox(as_in_maxdiffusion().init(jax.random.key(0), x))

    def taken(*args, fields=(), **kwargs):
        return attends_as_in_diffusers(as_in_maxdiffusion(**dict(fields)).bind(variables), *args, **kwargs)

    assert taken(x) and taken(x, None, True, None) and taken(x, cross_attention_kwargs=None, deterministic=False)
    assert not taken(x, cross_attention_kwargs={"scale": 2.0})
    assert not taken(x, None, True, {"scale": 2.0})
    assert not taken(x, cross_attention_kwargs=x)
    # Its flash kernel falls back to whole scores for fewer tokens than its least, of either side.
    flash = {"attention_kernel": "flash", "flash_min_seq_length": MANY_QUERIES}
    assert not taken(x, fields=flash) and taken(x, x[:, :7], fields=flash)
    assert taken(x, fields={**flash, "flash_min_seq_length": MANY_QUERIES + 1})
    assert not taken(x, fields={"attention_kernel": "cudnn_flash_te"})


def test_other_widths_of_values_and_empty_batches():
    q, k, v = qkv(MANY_QUERIES, 7)
    wide = jnp.concatenate([v, v], axis=-1)
    np.testing.assert_allclose(ATTENTION.apply({}, q, k, wide), by_hand(q, k, wide), atol=2e-6)
    assert ATTENTION.apply({}, q[:0], k[:0], v[:0]).shape == (0, *q.shape[1:])
