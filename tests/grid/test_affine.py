import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdq.grid import QParams, Scheme, dequantize, fake_quantize, qparams_from_range, quantize, round_learned

SCHEMES = [Scheme(bits, symmetric) for bits in range(2, 9) for symmetric in (True, False)]
ASYMMETRIC = [scheme for scheme in SCHEMES if not scheme.symmetric]
schemes = pytest.mark.parametrize("scheme", SCHEMES, ids=str)
TINY = 2.0**-126  # the smallest normal float32


def codes_of(tensor):
    return np.asarray(tensor.qvalue.astype(jnp.int32))


def grid(scale, zero_point=None):
    return QParams(jnp.float32(scale), None if zero_point is None else jnp.int32(zero_point))


def zero_points(scheme):
    lo, hi = scheme.bounds
    return [None] if scheme.symmetric else [lo, -1, 0, hi]


@functools.partial(jax.jit, static_argnums=2)
def both(x, qparams, scheme):
    return quantize(x, qparams, scheme), fake_quantize(x, qparams, scheme)


@schemes
@pytest.mark.parametrize("scale", [1.0, 0.1, 3e-7, 1.7e30, TINY])
def test_exhaustive_codes_round_trip(scheme, scale):
    lo, hi = scheme.bounds
    for zero_point in zero_points(scheme):
        codes = np.arange(lo, hi + 1)
        x = jnp.float32(scale) * (codes - (zero_point or 0)).astype(np.float32)
        tensor, fake = both(x, grid(scale, zero_point), scheme)
        np.testing.assert_array_equal(codes_of(tensor), codes)
        np.testing.assert_array_equal(dequantize(tensor), x)
        np.testing.assert_array_equal(fake, x)
        assert tensor.qvalue.dtype == scheme.storage_dtype


@schemes
def test_roundtrip_within_half_a_step_inside_and_clipped_beyond(scheme):
    lo, hi = scheme.bounds
    for zero_point in zero_points(scheme):
        offset = zero_point or 0
        x = jnp.linspace((lo - offset - 3) * 0.1, (hi - offset + 3) * 0.1, 4001)
        tensor, fake = both(x, grid(0.1, zero_point), scheme)
        back, x = np.asarray(dequantize(tensor)), np.asarray(x)
        np.testing.assert_array_equal(back, fake)
        ends = np.float32(0.1) * np.float32([lo - offset, hi - offset])
        inside = (x >= ends[0]) & (x <= ends[1])
        # Half a step, and the rounding of x / scale and of the product: 2 ulp of at most 256 steps.
        assert np.abs(back - x)[inside].max() <= 0.05 + 2 * 256 * 0.1 * 2.0**-24
        np.testing.assert_array_equal(back[x < ends[0]], ends[0])
        np.testing.assert_array_equal(back[x > ends[1]], ends[1])
        assert codes_of(tensor).min() == lo
        assert codes_of(tensor).max() == hi


@schemes
def test_property_monotone_and_idempotent(scheme):
    x = jnp.sort(jax.random.normal(jax.random.key(2), (999,)))
    qparams = qparams_from_range(x.min(), x.max(), scheme)
    tensor, fake = both(x, qparams, scheme)
    assert (np.diff(codes_of(tensor)) >= 0).all()
    np.testing.assert_array_equal(codes_of(both(fake, qparams, scheme)[0]), codes_of(tensor))


def test_golden_ties_to_even():
    x = jnp.array([-3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5])
    golden = [-4, -2, -2, 0, 0, 2, 2, 4]
    assert codes_of(quantize(x, grid(1.0), Scheme(8))).tolist() == golden
    # Rounded before the zero point is added: an odd zero point does not move the ties.
    assert (codes_of(quantize(x, grid(1.0, 3), Scheme(8, symmetric=False))) - 3).tolist() == golden
    assert fake_quantize(x, grid(1.0), Scheme(8)).tolist() == golden


@schemes
def test_infinity_takes_the_ends_and_nan_the_code_of_zero(scheme):
    lo, hi = scheme.bounds
    x = jnp.array([-jnp.inf, jnp.inf, -3.4e38, 3.4e38, jnp.nan])
    for zero_point in zero_points(scheme):
        tensor, fake = both(x, grid(1e-3, zero_point), scheme)
        assert codes_of(tensor).tolist() == [lo, hi, lo, hi, zero_point or 0]
        np.testing.assert_array_equal(fake[:4], dequantize(tensor)[:4])
        assert jnp.isnan(fake[4])


def test_nan_scale_quantizes_to_zeros():
    assert codes_of(quantize(jnp.array([1.0, -1.0]), grid(jnp.nan), Scheme(8))).tolist() == [0, 0]


@schemes
def test_empty_ranges_have_scale_one(scheme):
    qparams = qparams_from_range(jnp.zeros(3), jnp.zeros(3), scheme)
    assert qparams.scale.tolist() == [1, 1, 1]
    if not scheme.symmetric:
        assert qparams.zero_point.tolist() == [scheme.bounds[0]] * 3
        assert qparams.zero_point.dtype == jnp.int32


@schemes
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.3e-38), (-1.3e-38, 1.3e-38), (-TINY, 0.0), (0.0, 1e-37)])
def test_a_scale_is_never_subnormal(scheme, low, high):
    scale, zero_point = qparams_from_range(jnp.float32(low), jnp.float32(high), scheme)
    assert float(scale) >= TINY
    assert zero_point is None or scheme.bounds[0] <= int(zero_point) <= scheme.bounds[1]
    x = jnp.array([low, 0.0, high], jnp.float32)
    tensor = quantize(x, QParams(scale, zero_point), scheme)
    assert codes_of(tensor)[1] == (0 if zero_point is None else zero_point)
    assert jnp.isfinite(dequantize(tensor)).all()


@schemes
def test_a_subnormal_range_is_empty_or_smallest(scheme):
    scale = float(jax.jit(lambda high: qparams_from_range(0 * high, high, scheme).scale)(jnp.float32(1e-40)))
    assert scale in (1.0, np.float32(TINY))  # a device may flush subnormals or not


@schemes
def test_huge_finite_ranges_have_finite_scales(scheme):
    scale, zero_point = qparams_from_range(jnp.float32(-3e38), jnp.float32(3e38), scheme)
    lo, hi = scheme.bounds
    np.testing.assert_allclose(scale, 3e38 / hi if scheme.symmetric else 6e38 / (hi - lo), rtol=3e-7)
    assert zero_point is None or int(zero_point) in (-1, 0)


@schemes
@pytest.mark.parametrize(
    ("low", "high"), [(jnp.nan, 1.0), (-1.0, jnp.nan), (-jnp.inf, 1.0), (0.0, jnp.inf), (-jnp.inf, jnp.inf)]
)
def test_bad_ranges_stay_visible(scheme, low, high):
    assert not jnp.isfinite(qparams_from_range(jnp.float32(low), jnp.float32(high), scheme).scale)


@pytest.mark.parametrize(
    ("low", "high", "bits", "scale", "zero_point"),
    [
        (0.0, 255.0, 8, 1.0, -128),
        (-255.0, 0.0, 8, 1.0, 127),
        (-128.0, 127.0, 8, 1.0, 0),
        (2.0, 255.0, 8, 1.0, -128),  # widened to hold zero
        (-255.0, -3.0, 8, 1.0, 127),
        (-0.4, 2.6, 4, 0.2, -6),
        (-3.0, 12.0, 4, 1.0, -5),
        (0.0, 3.0, 2, 1.0, -2),
    ],
)
def test_golden_asymmetric_ranges(low, high, bits, scale, zero_point):
    qparams = qparams_from_range(jnp.float32(low), jnp.float32(high), Scheme(bits, symmetric=False))
    np.testing.assert_allclose(qparams.scale, scale, rtol=3e-7)
    assert int(qparams.zero_point) == zero_point


@pytest.mark.parametrize(
    ("low", "high", "bits", "scale"),
    [(-1.0, 127.0, 8, 1.0), (-127.0, 1.0, 8, 1.0), (3.0, 7.0, 4, 1.0), (-0.5, 0.25, 2, 0.5)],
)
def test_golden_symmetric_ranges(low, high, bits, scale):
    qparams = qparams_from_range(jnp.float32(low), jnp.float32(high), Scheme(bits))
    assert float(qparams.scale) == scale
    assert qparams.zero_point is None


@pytest.mark.parametrize("scheme", ASYMMETRIC, ids=str)
def test_property_zero_is_exact_and_ends_clip_by_half_a_step(scheme):
    low, high = jax.random.uniform(jax.random.key(3), (2, 500)) * jnp.array([[-1.0], [2.0]])
    qparams = qparams_from_range(low, high, scheme)
    assert (fake_quantize(jnp.zeros(500), qparams, scheme) == 0).all()
    for end in (low, high):
        error = jnp.abs(fake_quantize(end, qparams, scheme) - end) / qparams.scale
        assert error.max() <= 0.5 + 1e-4  # the rounding of up to 255 steps


def test_per_channel_equals_channel_by_channel():
    x = jax.random.normal(jax.random.key(4), (5, 3, 4)) * jnp.array([1.0, 10.0, 100.0])[:, None]
    for symmetric in (True, False):
        scheme = Scheme(4, symmetric, channel_axis=1)
        low, high = x.min((0, 2), keepdims=True), x.max((0, 2), keepdims=True)
        whole = quantize(x, qparams_from_range(low, high, scheme), scheme)
        for channel in range(3):
            part = x[:, channel]
            alone = quantize(part, qparams_from_range(part.min(), part.max(), scheme), scheme)
            np.testing.assert_array_equal(codes_of(whole)[:, channel], codes_of(alone))
            # XLA divides vectors and scalars by different instructions, which may differ in the last bit of the scale.
            np.testing.assert_allclose(dequantize(whole)[:, channel], dequantize(alone), rtol=2.0**-22)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32"])
def test_other_dtypes_are_computed_in_float32(dtype):
    x = jnp.array([-1, 2, 3], dtype)
    assert codes_of(quantize(x, grid(1.0), Scheme(8))).tolist() == [-1, 2, 3]
    assert fake_quantize(x, grid(1.0), Scheme(8)).dtype == jnp.float32


# Gradients: 4 bits asymmetric, codes -8..7, scale 0.5, zero point -3: x from -2.5 to 5.0.
LEARN = Scheme(4, symmetric=False)


def grads(x, scheme=LEARN, scale=0.5, zero_point: float | None = -3.0):
    def value(x, scale, zero_point):
        return fake_quantize(x, QParams(scale, zero_point), scheme)

    argnums = (0, 1) if zero_point is None else (0, 1, 2)
    return [float(g) for g in jax.grad(value, argnums)(jnp.float32(x), jnp.float32(scale), zero_point)]


@pytest.mark.parametrize(
    ("x", "to_x", "to_scale", "to_zero_point"),
    [
        (0.0, 1, 0.0, 0),
        (0.6, 1, 1 - 1.2, 0),
        (-1.1, 1, -2 + 2.2, 0),
        (0.75, 1, 2 - 1.5, 0),  # a tie that rounds up
        (0.25, 1, 0 - 0.5, 0),  # a tie that rounds down
        (5.0, 1, 0.0, 0),  # on the last code
        (-2.5, 1, 0.0, 0),  # on the first
        (5.2, 1, 10 - 10.4, 0),  # past the last code, but rounds onto it
        (5.25, 1, 10 - 10.5, 0),  # a tie at the end, rounded onto it
        (5.3, 0, 7 + 3, -0.5),  # beyond
        (-2.8, 0, -8 + 3, -0.5),
        (1e30, 0, 10, -0.5),
    ],
)
def test_grad_asymmetric(x, to_x, to_scale, to_zero_point):
    np.testing.assert_allclose(grads(x), [to_x, to_scale, to_zero_point], atol=2e-6)


@pytest.mark.parametrize(
    ("x", "to_x", "to_scale"), [(0.6, 1, -0.2), (3.5, 1, 0.0), (-3.5, 1, 0.0), (3.76, 0, 7), (-3.76, 0, -7)]
)
def test_grad_symmetric(x, to_x, to_scale):
    np.testing.assert_allclose(grads(x, Scheme(4), zero_point=None), [to_x, to_scale], atol=2e-6)


def test_grad_of_nan_is_nan():
    assert np.isnan(grads(np.nan)).any()


def test_grad_of_learned_rounding_goes_to_the_logits():
    def value(logits):
        return fake_quantize(jnp.float32(0.6), grid(0.5), Scheme(4), lambda steps: round_learned(steps, logits))

    np.testing.assert_allclose(jax.grad(value)(jnp.float32(0.0)), 0.5 * 0.3, rtol=1e-6)


def test_range_gradient_reaches_the_ends():
    def value(high):
        return qparams_from_range(jnp.float32(0), high, Scheme(8)).scale

    np.testing.assert_allclose(jax.grad(value)(jnp.float32(2.0)), 1 / 127, rtol=1e-6)
