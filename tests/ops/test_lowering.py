import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdq.grid import QParams, QTensor, Scheme
from jaxdq.ops import Window, conv_general_dilated, lowered_as
from jaxdq.ops._forms import FORMS
from jaxdq.ops._lowering import TABLE, Shapes, convolve_codes, form_of

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def traced(lhs_shape, rhs_shape):
    window, pads = Window((1, 1)), [(1, 1), (1, 1)]
    shapes = [jax.ShapeDtypeStruct(shape, jnp.int8) for shape in (lhs_shape, rhs_shape)]
    return jax.jit(lambda lhs, rhs: convolve_codes(lhs, rhs, window, pads)).trace(*shapes)


def test_rows_name_forms_and_platforms_and_say_why():
    assert {row.form for row in TABLE} <= set(FORMS)
    assert {row.platform for row in TABLE} <= set(PLATFORMS)
    assert all(row.why for row in TABLE)


@pytest.mark.parametrize(
    ("shapes", "form"),
    [
        (Shapes(batch=8, width=32, channels=640, taps=9, strides=1), "native"),
        (Shapes(batch=8, width=32, channels=320, taps=9, strides=1), "padded"),
        (Shapes(batch=8, width=32, channels=320, taps=9, strides=2), "padded"),
        (Shapes(batch=2, width=16, channels=640, taps=9, strides=1), "im2col"),
        (Shapes(batch=2, width=8, channels=1280, taps=9, strides=1), "im2col"),
        (Shapes(batch=8, width=32, channels=320, taps=1, strides=1), "im2col"),
    ],
)
def test_golden_forms_on_tpu(shapes, form):
    assert form_of("tpu", shapes) == form


@pytest.mark.parametrize(
    ("shapes", "form"),
    [
        (Shapes(batch=2, width=8, channels=1280, taps=9, strides=1), "im2col"),
        (Shapes(batch=8, width=16, channels=24, taps=9, strides=1), "native"),
        (Shapes(batch=8, width=64, channels=640, taps=9, strides=1), "native"),
        (Shapes(batch=8, width=16, channels=640, taps=9, strides=2), "native"),
        (Shapes(batch=1, width=16, channels=640, taps=127, strides=1), "native"),
    ],
)
def test_golden_forms_on_a_cpu(shapes, form):
    assert form_of("cpu", shapes) == form


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_program_holds_the_form_of_its_platform_alone(platform):
    text = traced((2, 8, 8, 320), (3, 3, 320, 64)).lower(lowering_platforms=(platform,)).as_text()
    form = form_of(platform, Shapes(2, 8, 320, 9, 1))
    assert text.count("stablehlo.convolution") == (form in ("native", "padded"))
    assert text.count("stablehlo.dot_general") == {"im2col": 1, "shifted": 9}.get(form, 0)
    assert "xi8>" in text and "xi32>" in text and "xf32>" not in text


@pytest.mark.optimized
def test_the_compiled_program_has_no_conditional():
    text = traced((2, 8, 8, 320), (3, 3, 320, 8)).lower().compile().as_text()
    assert " conditional(" not in text
    assert len(re.findall(r" = \S+ (?:convolution|dot|custom-call)\(", text)) == 1


def test_the_choice_changes_no_number():
    rng = np.random.default_rng(0)
    lhs, rhs = (jnp.asarray(rng.integers(-128, 128, shape), jnp.int8) for shape in ((1, 4, 4, 6), (3, 3, 6, 2)))
    window, pads = Window((1, 1)), [(1, 1), (1, 1)]
    ours = jax.jit(lambda lhs, rhs: convolve_codes(lhs, rhs, window, pads))(lhs, rhs)
    np.testing.assert_array_equal(ours, FORMS["native"](lhs, rhs, window, pads))


@pytest.mark.parametrize("zero_point", [None, 3])
def test_a_form_is_chosen_by_the_image_and_not_by_its_padding(zero_point):
    """A zero point pads the codes ahead: 16 becomes 18, which is no width that the table means."""
    grid = QParams(jnp.float32(1), None if zero_point is None else jnp.int32(zero_point))
    lhs, rhs = (jax.ShapeDtypeStruct(shape, jnp.int8) for shape in ((2, 16, 16, 640), (3, 3, 640, 8)))

    def call(lhs, rhs):
        scheme = Scheme(8, symmetric=zero_point is None)
        return conv_general_dilated(
            QTensor(lhs, grid, scheme), QTensor(rhs, QParams(jnp.float32(1)), Scheme(8)), Window((1, 1))
        )

    text = jax.jit(call).trace(lhs, rhs).lower(lowering_platforms=("tpu",)).as_text()
    assert (text.count("stablehlo.convolution"), text.count("stablehlo.dot_general")) == (0, 1)


def test_part_of_a_convolution_takes_the_form_of_the_whole():
    def forms(lhs_shape):
        text = traced(lhs_shape, (3, 3, 640, 8)).lower(lowering_platforms=("tpu",)).as_text()
        return text.count("stablehlo.convolution")

    assert (forms((2, 32, 32, 640)), forms((2, 8, 32, 640))) == (1, 0)
    with lowered_as((2, 32, 32, 640)):
        assert forms((2, 8, 32, 640)) == 1
