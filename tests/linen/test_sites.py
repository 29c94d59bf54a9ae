import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import SHAPE, Told, ToyUNet, toy_calibration, toy_params, toy_plan

from jaxdq.grid import QParams, Scheme, fake_quantize
from jaxdq.linen import Einsum, Rule, apply, apply_visited, dequantize_params, find_sites, kernel_at, quantize
from jaxdq.linen._sites import OTHER

T0 = np.int32(0)


class Wrap(nn.Module):
    """One layer as a network: called with images and a time."""

    layer: nn.Module
    calls: int = 1

    @nn.compact
    def __call__(self, x, t):
        for _ in range(self.calls):
            x = self.layer(x)
        return x


def wrapped(layer, x, calls=1):
    module = Wrap(layer, calls)
    return module, toy_params(module, x, T0)


def only_site(layer, x, calls=1):
    module, params = wrapped(layer, x, calls)
    (site,) = find_sites(module, params, x, T0)
    return site


def test_toy_unet_lists_every_site_in_order_with_macs_counted_by_hand():
    x = np.zeros((2, *SHAPE))
    sites = find_sites(ToyUNet(), toy_params(ToyUNet(), x, T0), x, T0)
    # 8 x 8 pixels, 8 features; 4 x 4 = 16 tokens of 16 features below. Batch 2, counted for one image.
    assert [(site.path, site.kind, site.rows, site.macs) for site in sites] == [
        ("time", "dense", 1, 8 * 8),
        ("shift", "dense", 1, 8 * 16),
        ("conv_in", "conv", 64, 64 * 9 * 2 * 8),
        ("down", "conv", 16, 16 * 9 * 8 * 16),
        ("query", "dense", 16, 16 * 16 * 16),
        ("key", "dense", 16, 16 * 16 * 16),
        ("value", "dense", 16, 16 * 16 * 16),
        ("scores", "product", 256, 16 * 16 * 16),
        ("mix", "product", 256, 16 * 16 * 16),
        ("out", "dense", 16, 16 * 16 * 16),
        ("up", "conv", 64, 64 * 9 * 24 * 8),
        ("conv_out", "conv", 64, 64 * 9 * 8 * 2),
    ]
    assert not any(site.unsupported for site in sites)


@pytest.mark.parametrize(
    ("layer", "shape", "kernel", "channel_axes", "rows", "macs"),
    [
        (nn.Dense(5), (2, 3, 4), (4, 5), (1,), 3, 3 * 4 * 5),
        (nn.DenseGeneral((3, 5)), (2, 7, 4), (4, 3, 5), (1, 2), 7, 7 * 4 * 15),
        (nn.DenseGeneral(5, axis=(-2, -1)), (2, 7, 3, 4), (3, 4, 5), (2,), 7, 7 * 12 * 5),
        (nn.DenseGeneral((2, 5), axis=(1, 3)), (2, 7, 3, 4), (7, 4, 2, 5), (2, 3), 3, 3 * 28 * 10),
        (nn.Conv(6, (3, 3)), (2, 8, 8, 4), (3, 3, 4, 6), (3,), 64, 64 * 36 * 6),
        (nn.Conv(6, (3, 3), 2), (2, 8, 8, 4), (3, 3, 4, 6), (3,), 16, 16 * 36 * 6),
        (nn.Conv(6, (3, 3), padding="VALID"), (2, 8, 8, 4), (3, 3, 4, 6), (3,), 36, 36 * 36 * 6),
        (nn.Conv(6, (3, 3), feature_group_count=2), (2, 8, 8, 4), (3, 3, 2, 6), (3,), 64, 64 * 18 * 6),
        (nn.Conv(6, (3,)), (2, 8, 4), (3, 4, 6), (2,), 8, 8 * 12 * 6),
        (nn.Conv(6, (2, 2, 2)), (2, 3, 3, 3, 4), (2, 2, 2, 4, 6), (4,), 27, 27 * 32 * 6),
    ],
)
def test_golden_shape_axes_rows_and_macs(layer, shape, kernel, channel_axes, rows, macs):
    site = only_site(layer, np.zeros(shape, np.float32))
    assert (site.shape, site.channel_axes, site.rows, site.macs) == (kernel, channel_axes, rows, macs)
    assert (site.path, site.unsupported, site.inputs) == ("layer", "", ("layer",))


def test_kernel_called_twice_is_one_site_that_works_twice():
    once, twice = (only_site(nn.Dense(4), np.zeros((1, 4)), calls) for calls in (1, 2))
    assert twice.macs == 2 * once.macs == 32


@pytest.mark.parametrize(
    ("layer", "shape", "reason"),
    [
        (nn.Conv(2, (3, 3), mask=jnp.ones((3, 3, 2, 2))), (1, 4, 4, 2), "masked"),
        (nn.Conv(2, (3, 3), padding=1, input_dilation=2), (1, 4, 4, 2), "input dilation"),
        (nn.Conv(2, (3, 3)), (2, 1, 4, 4, 2), "2 batch axes"),
        (nn.DenseGeneral(3, axis=-1, batch_dims=(0,)), (2, 4, 3), "batch_dims"),
        (nn.DenseGeneral(3, axis=-1, batch_dims=0), (2, 4, 3), "batch_dims"),
    ],
)
def test_what_the_integer_path_does_not_do_is_listed_with_its_reason(layer, shape, reason):
    assert reason in only_site(layer, np.ones(shape, np.float32)).unsupported


def test_an_einsum_that_is_not_one_dot_is_listed_and_counted_with_the_rest():
    class Trace(nn.Module):
        @nn.compact
        def __call__(self, x, t):
            return Einsum("bii,bj->bj", name="trace")(x, x[..., 0])

    site, rest = find_sites(Trace(), {}, np.zeros((1, 2, 2)), T0)
    assert "bii,bj->bj" in site.unsupported and site.macs == 0
    assert rest.path == OTHER and rest.unsupported and rest.macs > 0


def test_attention_of_flax_is_found_by_its_projections_and_its_products_are_named_as_float():
    module = Wrap(nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8))
    x = np.zeros((2, 5, 8))
    sites = find_sites(module, toy_params(module, x, T0), x, T0)
    assert {site.path: (site.shape, site.channel_axes, site.macs) for site in sites} == {
        "layer/query": ((8, 2, 4), (1, 2), 5 * 8 * 8),
        "layer/key": ((8, 2, 4), (1, 2), 5 * 8 * 8),
        "layer/value": ((8, 2, 4), (1, 2), 5 * 8 * 8),
        "layer/out": ((2, 4, 8), (2,), 5 * 8 * 8),
        OTHER: ((), (), 2 * 2 * 5 * 5 * 4),  # two products of two heads: 5 x 5 scores of 4 features
    }
    plan = toy_plan(module, toy_params(module, x, T0), [Rule(".*", Scheme(8, channel_axis=-1), Scheme(8))], x, T0)
    assert plan.integer_mac_fraction == 4 * 320 / (4 * 320 + 400)
    assert "float: no Dense, DenseGeneral, Conv or Einsum computes them" in str(plan)


class Doubled(nn.Dense):
    def __call__(self, inputs):
        return 2 * super().__call__(inputs)


class Renamed(nn.Dense):
    """Says nothing new, so it is what it was."""


class Standardized(nn.Conv):
    """As published residual networks write it: the kernel is standardized where the layer asks for it."""

    def param(self, name, *args, **kwargs):
        value = super().param(name, *args, **kwargs)
        return (value - value.mean((0, 1, 2))) / (value.std((0, 1, 2)) + 1e-5) if name == "kernel" else value


def halved(*arrays, dtype, inexact=True):
    return [array if array is None else 0.5 * array for array in arrays]


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Doubled(4), "a subclass of Dense with a __call__ of its own"),
        (nn.Dense(4, dot_general=lambda *args, **kwargs: 2 * jax.lax.dot_general(*args, **kwargs)), "a dot_general of"),
        (nn.Conv(4, (1,), conv_general_dilated=jax.lax.conv_general_dilated), "a conv_general_dilated of its own"),
        (Standardized(4, (1,)), "something else than its class in flax"),
        (nn.Dense(4, promote_dtype=halved), "something else than its class in flax"),
    ],
)
def test_layers_that_compute_in_their_own_way_are_left_to_it(layer, reason):
    assert reason in only_site(layer, np.zeros((2, 3, 4), np.float32)).unsupported
    assert only_site(Renamed(4), np.zeros((2, 4), np.float32)).unsupported == ""


class Shifted(nn.Dense):
    def __call__(self, inputs, shift):
        return super().__call__(inputs) + shift


def test_a_layer_with_more_arguments_than_the_class_it_derives_from_is_one_call():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x, t):
            return nn.Dense(4, name="dense")(Shifted(4, name="own")(x, t))

    x = np.zeros((2, 4), np.float32)
    own, dense = find_sites(Network(), toy_params(Network(), x, T0), x, T0)
    assert (own.path, own.macs, own.unsupported) == ("own", 16, "a subclass of Dense with a __call__ of its own")
    assert (dense.path, dense.macs, dense.unsupported) == ("dense", 16, "")


def test_inputs_may_come_by_name():
    class ByName(nn.Module):
        @nn.compact
        def __call__(self, x, t):
            h = nn.Dense(4, name="dense")(inputs=x)
            return Einsum("bi,bi->b", name="product")(rhs=x, lhs=h)

    module, x = ByName(), np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    params, seen = toy_params(module, x, T0), {}
    apply_visited(module, params, lambda name, x: seen.setdefault(name, x), x, T0)
    np.testing.assert_array_equal(seen["product:rhs"], x)
    plan = toy_plan(module, params, [Rule(".*", Scheme(8, channel_axis=-1), Scheme(8))], x, T0)
    qparams = quantize(params, toy_calibration(module, params, plan, [0], x, T0))
    assert plan.integer_mac_fraction == 1
    # Two roundings of 0.5 / 127 relative to the peaks, weights alike: within 4 % of 4 products of peaks.
    exact = apply(module, params, x, T0)
    np.testing.assert_allclose(
        jax.jit(lambda q: apply(module, q, x, 0))(qparams),
        exact,
        atol=0.04 * 4 * abs(x).max() * abs(seen["product:lhs"]).max(),
    )


def test_abstract_params_do():
    x = np.zeros((1, *SHAPE))
    params = toy_params(ToyUNet(), x, T0)
    abstract = jax.eval_shape(lambda: params)
    assert find_sites(ToyUNet(), abstract, x, T0) == find_sites(ToyUNet(), params, x, T0)


def test_kernel_at_follows_paths_and_misses_gently():
    params = {"a": {"b": {"kernel": 1}, "bias": 2}}
    assert kernel_at(params, "a/b") == 1
    assert kernel_at(params, "a") is kernel_at(params, "a/c") is kernel_at(params, "a/bias/b") is None


LAYERS = {
    "dense": (nn.Dense(5), (2, 3, 4)),
    "dense, no bias": (nn.Dense(5, use_bias=False), (2, 3, 4)),
    "dense, several features": (nn.DenseGeneral((3, 5)), (2, 7, 4)),
    "dense, two axes": (nn.DenseGeneral(5, axis=(-2, -1)), (2, 7, 3, 4)),
    "dense, axes apart": (nn.DenseGeneral((2, 5), axis=(1, 3)), (2, 3, 5, 4)),
    "dense, axes in reverse": (nn.DenseGeneral(5, axis=(-1, -2)), (2, 4, 4)),
    "dense, axes in disorder": (nn.DenseGeneral((5, 2), axis=(-1, 1, 2)), (2, 3, 4, 2, 5)),
    "dense, one axis of many": (nn.DenseGeneral(3, axis=1), (2, 3, 4, 2)),
    "dense, a list of axes": (nn.DenseGeneral([3], axis=[-2]), (2, 3, 4, 2)),
    "conv same": (nn.Conv(3, (3, 2), 2, padding="same"), (2, 5, 6, 4)),
    "conv Valid": (nn.Conv(3, (3, 2), None, padding="Valid"), (2, 5, 6, 4)),
    "conv SAME_LOWER": (nn.Conv(3, (2, 4), 2, padding="SAME_LOWER"), (2, 5, 6, 4)),
    "conv same_lower dilated": (nn.Conv(3, (2, 4), padding="same_lower", kernel_dilation=2), (2, 5, 6, 4)),
    "conv mixed padding": (nn.Conv(3, [3, 3], [1, 2], padding=[2, (0, 1)]), (2, 5, 6, 4)),
    "conv padding 0": (nn.Conv(3, (3, 3), padding=0, kernel_dilation=None), (2, 5, 6, 4)),
    "conv cropped": (nn.Conv(3, (3, 3), padding=((-1, 2), (0, -1))), (2, 5, 6, 4)),
    "conv of an int": (nn.Conv(3, 3, padding=1), (2, 7, 4)),
    "conv REFLECT strided": (nn.Conv(3, (3, 2), (2, 1), padding="REFLECT", kernel_dilation=(1, 2)), (2, 5, 6, 4)),
    "conv CIRCULAR grouped": (nn.Conv(4, (4, 3), 2, padding="CIRCULAR", feature_group_count=2), (2, 5, 6, 4)),
    "conv VALID": (nn.Conv(6, (3, 3), padding="VALID"), (2, 5, 6, 4)),
    "conv int padding": (nn.Conv(6, (3, 3), padding=2), (2, 5, 6, 4)),
    "conv pairs padding": (nn.Conv(6, (3, 3), 2, padding=((0, 1), (1, 0))), (2, 6, 6, 4)),
    "conv CIRCULAR dilated": (nn.Conv(6, (3, 3), padding="CIRCULAR", kernel_dilation=2), (2, 5, 6, 4)),
    "conv REFLECT": (nn.Conv(6, (4, 3), padding="REFLECT"), (2, 5, 6, 4)),
    "conv CAUSAL": (nn.Conv(6, (3,), padding="CAUSAL", kernel_dilation=2), (2, 7, 4)),
    "conv strided": (nn.Conv(6, (3, 3), (2, 1)), (2, 5, 6, 4)),
    "conv dilated, ints padding": (nn.Conv(6, (3, 3), padding=(1, 2), kernel_dilation=(2, 1)), (2, 5, 6, 4)),
    "conv depthwise, multiplier 2": (nn.Conv(8, (3, 3), feature_group_count=4), (2, 5, 6, 4)),
    "conv 1d": (nn.Conv(6, (3,), 2), (2, 7, 4)),
    "conv 3d": (nn.Conv(3, (3, 2, 1)), (2, 4, 3, 2, 4)),
}


class Zoo(nn.Module):
    """Every layer on its part of x, float[2, 420], so that one program holds them all."""

    names: tuple[str, ...]

    @nn.compact
    def __call__(self, x, t):
        inputs = {name: LAYERS[name][1] for name in self.names}
        inputs = {name: x[:, : math.prod(shape[1:])].reshape(shape) for name, shape in inputs.items()}
        return {name: LAYERS[name][0].clone(name=name, parent=self)(inputs[name]) for name in self.names}


@pytest.mark.parametrize(
    ("names", "symmetric"),
    [(tuple(LAYERS), False), (("dense", "conv CAUSAL"), True)],
    ids=["asymmetric", "symmetric"],
)
def test_oracle_every_layer_on_integers_equals_its_float_twin(names, symmetric):
    rng = np.random.default_rng(0)
    # Far from centred, so that padding with code 0 in place of the zero point's code would show.
    x = rng.uniform(-0.5, 2.0, (2, 420)).astype(np.float32)
    module, act = Zoo(names), Scheme(8, symmetric=symmetric)
    params = toy_params(module, x, T0)
    plan = toy_plan(module, params, [Rule(".*", Scheme(8, channel_axis=-1), act)], x, T0)
    assert plan.integer_mac_fraction == 1
    calib = toy_calibration(module, params, plan, [0], x, T0)

    @jax.jit
    def both(calib, t):
        qparams = quantize(params, calib)

        def visitor(name, x):
            column, _ = plan.activations[name]
            zero_point = None if symmetric else calib.acts.zero_point[0, column]
            return fake_quantize(x, QParams(calib.acts.scale[0, column], zero_point), act)

        return apply(module, qparams, x, t), apply_visited(module, dequantize_params(qparams), visitor, x, t)

    integer, twin = both(calib, jnp.zeros((), jnp.int32))
    for name in names:
        assert abs(twin[name]).max() > 0.1
        # Float32 sums of at most 36 products below 8, each rounded once, in whatever order: 36 * 8 * 2**-23 < 4e-5.
        np.testing.assert_allclose(integer[name], twin[name], rtol=0, atol=4e-5, err_msg=name)


class Readers(nn.Module):
    """Three layers of one array, one of another of the same numbers, and a kernel that is applied twice."""

    @nn.compact
    def __call__(self, x, t):
        twice = nn.Dense(4, name="twice")
        q, k, v = (nn.Dense(4, name=name)(x) for name in ("q", "k", "v"))
        return q + k + v + nn.Dense(4, name="copy")(x + 0.0) + twice(q) + twice(x) + nn.Dense(4, name="after")(q)


def test_sites_name_the_first_that_reads_the_same_array():
    x = np.zeros((2, 3, 4), np.float32)
    sites = find_sites(Readers(), toy_params(Readers(), x, T0), x, T0)
    # "twice" has a grid of its own for both of its inputs, so that "after" has nobody to share with.
    expected = {"q": "", "k": "q", "v": "q", "copy": "", "twice": "", "after": ""}
    assert {site.path: site.reads for site in sites} == expected


@pytest.mark.parametrize("by_name", [False, True])
def test_sites_that_are_called_with_a_condition_are_known(by_name):
    x, text = np.zeros((2, *SHAPE), np.float32), np.zeros((2, 3, 5), np.float32)
    params = toy_params(Told(), x, T0, text)

    class Named:
        def apply(self, variables, x, t, text):
            return Told().apply(variables, text=text, t=t, x=x)

    sites = find_sites(Named() if by_name else Told(), params, x, T0, text)
    assert {site.path: (site.is_condition, site.reads) for site in sites if site.kind == "dense"} == {
        "in": (False, ""),
        "q": (False, ""),
        "k": (True, ""),
        "v": (True, "k"),
        "out": (False, ""),
    }


class RowByRow(nn.Module):
    """One layer for all rows and one for each of them: with one row, both are called with the same tracer."""

    @nn.compact
    def __call__(self, x, t):
        alone = nn.Dense(4, name="alone")
        return nn.Dense(4, name="all")(x) + jnp.concatenate([alone(x[i : i + 1]) for i in range(x.shape[0])])


@pytest.mark.parametrize("batch", [1, 2])
def test_a_part_of_the_batch_is_another_array(batch):
    x = np.zeros((batch, 3, 4), np.float32)
    sites = find_sites(RowByRow(), toy_params(RowByRow(), x, T0), x, T0)
    assert {site.path: site.reads for site in sites} == {"alone": "", "all": ""}


@pytest.mark.optimized
def test_one_array_is_quantized_once():
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    params = toy_params(Readers(), x, T0)
    plan = toy_plan(Readers(), params, [Rule(".*", Scheme(8, channel_axis=-1), Scheme(8, symmetric=False))], x, T0)
    assert [name for name, _ in plan.columns] == ["q", "copy", "twice", "after"]
    qparams = quantize(params, toy_calibration(Readers(), params, plan, [0], x, T0))
    text = jax.jit(lambda q, x: apply(Readers(), q, x, 0)).lower(qparams, x).compile().as_text()
    rounded = re.findall(r"round-nearest-even\(", text)
    assert 4 <= len(rounded) <= 5  # "twice" rounds two arrays; fused copies of x would make it seven
