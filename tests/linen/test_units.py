import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import SHAPE, ToyUNet, toy_params

from jaxdq import InputError
from jaxdq.linen import at_paths, tap, units_of


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, *, shift):
        h = nn.silu(nn.Dense(self.features, name="inner")(x)) + shift
        return x + nn.Dense(x.shape[-1], name="out")(h)


class Stack(nn.Module):
    lifted: bool = False

    @nn.compact
    def __call__(self, x, t):
        block = nn.remat(Block) if self.lifted else Block
        for name in ("one", "two"):
            x = block(8, name=name)(x, shift=0.1 * t)
        return nn.Dense(2, name="end")(x)


X, T = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4)), jnp.float32), jnp.float32(2)
PARAMS = toy_params(Stack(), X, T)


def is_block(module):
    return isinstance(module, Block)


def test_a_unit_alone_gives_what_it_gave_in_the_network():
    output, units = jax.jit(lambda params, x, t: strip(tap(Stack(), params, is_block, x, t)))(PARAMS, X, T)
    np.testing.assert_allclose(output, Stack().apply({"params": PARAMS}, X, T), rtol=1e-5, atol=1e-6)
    first, second = units_of(Stack(), PARAMS, is_block, X, T)
    assert [unit.path for unit in (first, second)] == ["one", "two"], "in the order of execution"
    for unit, (params, args, kwargs, expected) in zip((first, second), units, strict=True):
        np.testing.assert_allclose(
            unit.module.apply({"params": params}, *args, **kwargs), expected, rtol=1e-5, atol=1e-6
        )
    # What the second was given is what the first returned.
    np.testing.assert_array_equal(units[1][1][0], units[0][3])


def strip(tapped):
    """Without the modules, which jit can't return."""
    output, units = tapped
    return output, [(unit.params, unit.args, unit.kwargs, unit.output) for unit in units]


def test_units_within_a_unit_are_not_looked_at():
    found = units_of(Stack(), PARAMS, lambda module: isinstance(module, Block | nn.Dense), X, T)
    assert [unit.path for unit in found] == ["one", "two", "end"]
    assert found[0].args[0].shape == X.shape and found[0].output.shape == X.shape


def test_units_are_chosen_by_path_too():
    x = jnp.zeros((2, *SHAPE))
    params = jax.eval_shape(lambda: toy_params(ToyUNet(), x, T))
    found = units_of(ToyUNet(), params, at_paths("down", "up"), x, T)
    assert [(unit.path, type(unit.module)) for unit in found] == [("down", nn.Conv), ("up", nn.Conv)]


def test_values_that_can_not_leave_a_transformation_are_refused_by_name():
    with pytest.raises(InputError, match=r"'one' sits in a lifted transformation .* choose a unit around it"):
        units_of(Stack(lifted=True), PARAMS, lambda module: isinstance(module, Block), X, T)
