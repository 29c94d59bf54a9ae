import dataclasses
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxdq._common.errors import InputError
from jaxdq.diffusion import Denoiser, check_finite, linear_schedule

SCHEDULE = linear_schedule(10)
MODULE = SimpleNamespace(apply=lambda variables, x, t: x)
PARAMS = {"conv_in": {"kernel": jnp.ones((3, 3, 1, 8)), "bias": np.zeros(8)}}


def make(**fields):
    return Denoiser(**({"module": MODULE, "params": PARAMS, "schedule": SCHEDULE, "shape": (8, 8, 1)} | fields))


def test_conditions_repeat_over_the_images():
    labels, context = np.array([7, 8, 9]), jnp.arange(4.0).reshape(2, 2)
    got_labels, got_context = make(conditions=(labels, context)).args(jnp.array([0, 1, 4, 5]))
    np.testing.assert_array_equal(got_labels, [7, 8, 8, 9])
    np.testing.assert_array_equal(got_context, [[0, 1], [2, 3], [0, 1], [2, 3]])
    assert make().args(jnp.arange(3)) == ()


def test_conditions_without_values_can_be_looked_at_only():
    text = jax.ShapeDtypeStruct((3, 77, 8), jnp.float32)
    assert make(conditions=(text,)).abstract_args(2) == (jax.ShapeDtypeStruct((2, 77, 8), jnp.float32),)
    with pytest.raises(InputError, match=r"shapes only, \(3, 77, 8\); give the arrays"):
        make(conditions=(text,)).args(jnp.arange(2))


def test_abstract_args_are_the_shapes_of_args():
    denoiser = make(conditions=(np.arange(3), [[1.0, 2.0]]))
    assert denoiser.abstract_args(4) == jax.eval_shape(lambda: denoiser.args(jnp.arange(4)))


def test_args_are_jittable():
    denoiser = make(conditions=(np.arange(3),))
    np.testing.assert_array_equal(jax.jit(denoiser.args)(jnp.array([4, 5]))[0], [1, 2])


def test_is_hashable_and_replaceable():
    denoiser = make(shape=[8, 8, 1])
    assert denoiser.shape == (8, 8, 1)
    assert {denoiser: 1}[denoiser] == 1
    assert dataclasses.replace(denoiser, name="other").params is denoiser.params


@pytest.mark.parametrize("shape", [(), (8, 8, 0), (8, 8, 1.0), "8x8", None])
def test_refuses_shapes_that_are_none(shape):
    with pytest.raises(InputError, match="pass positive integers"):
        make(shape=shape)


def test_refuses_what_cannot_be_sampled():
    with pytest.raises(InputError, match="no arrays"):
        make(params={})
    with pytest.raises(InputError, match="apply"):
        make(module=object())
    with pytest.raises(InputError, match="NoiseSchedule"):
        make(schedule=np.ones(3))
    with pytest.raises(InputError, match=r"conditions\[1\]"):
        make(conditions=(np.ones(3), np.ones(())))
    with pytest.raises(InputError, match=r"conditions\[0\]"):
        make(conditions=(np.ones((0, 3)),))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, ml_dtypes.bfloat16, np.float16, np.float64])
def test_names_the_paths_that_are_not_finite(bad, dtype):
    faulty = np.ones((2, 2), dtype)
    faulty[1, 1] = bad
    params = {"mid": {"attn": [{"kernel": faulty}]}, "out": {"bias": np.zeros(3)}}
    with pytest.raises(InputError, match="NaN or infinity in params at mid/attn/0/kernel;"):
        make(params=params)
    if dtype != np.float64:
        with pytest.raises(InputError, match="at a, b, c, d, e and 1 more;"):
            check_finite({name: jnp.asarray(faulty) for name in "abcdef"})


def test_leaves_without_values_pass():
    check_finite({"a": jax.ShapeDtypeStruct((2,), jnp.float32), "b": np.array([1, 2]), "c": jnp.ones(2, jnp.int8)})
    jax.jit(lambda params: check_finite(params))({"a": jnp.full(2, jnp.nan)})
    assert make(params=jax.eval_shape(lambda: PARAMS)).name == "custom"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"conditions": np.ones((4, 8))}, r"conditions is a ndarray of shape \(4, 8\); pass a tuple"),
        ({"conditions": "cat"}, "conditions is a str; pass a tuple"),
        ({"conditions": (["a cat", "a dog"],)}, r"conditions\[0\] is a list; pass an array of numbers"),
        ({"conditions": (np.array(["a", "b"]),)}, r"conditions\[0\] is of shape \(2,\) and type <U1"),
        ({"conditions": (np.ones(3), np.array([1.0, np.nan]))}, r"conditions\[1\] holds NaN or infinity"),
        ({"params": {"params": PARAMS}}, "params is all that module.init returned; pass its 'params'"),
        ({"params": {"params": PARAMS, "batch_stats": {}}}, r"'batch_stats' as variables=\{...\}"),
        ({"params": {"a": {"b": "text"}}}, "params holds 'text' at 'a/b'; pass a pytree of arrays"),
        ({"params": "weights.npz"}, "params holds 'weights.npz'; pass a pytree"),
        ({"params": None}, "params has no arrays"),
        ({"params": {"a": object()}}, "params holds a object at 'a'"),
        ({"shape": (8, True, 1)}, "pass positive integers"),
        ({"name": 3}, "name is 3; pass text"),
        ({"module": nn.Dense}, r"module is the class Dense; pass a module, Dense\(...\)"),
        ({"module": None}, "module is a NoneType without an apply method"),
        ({"schedule": {"beta_start": 0.1}}, "schedule is a dict; pass a NoiseSchedule"),
    ],
)
def test_fields_of_the_wrong_kind_are_told_one_by_one(fields, message):
    with pytest.raises(InputError, match=message):
        make(**fields)


def test_boxes_for_sharding_are_taken_off():
    boxed = nn.Partitioned(jnp.ones((2, 2)), ("a", None))
    denoiser = make(params={"dense": {"kernel": boxed}}, variables={"stats": {"mean": boxed}})
    assert denoiser.params["dense"]["kernel"] is boxed.value and denoiser.variables["stats"]["mean"] is boxed.value
