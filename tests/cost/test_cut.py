"""Prices of kernels that are cut: as many integer dots as parts, and no program shared with the whole kernel's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from toys import toy_params

from jaxdq import Rule, Scheme
from jaxdq.cost import ExecutionMode, _compose, network_of
from jaxdq.cost._lowered import lowered_call
from jaxdq.linen import find_sites, make_plan


class Shortcut(nn.Module):
    @nn.compact
    def __call__(self, x, t):
        return nn.Conv(8, (1, 1), name="shortcut")(jnp.concatenate([x, 2 * x[..., :4]], -1))


ARGS = (jnp.zeros((2, 8, 8, 12)), jnp.int32(0))
PARAMS = toy_params(Shortcut(), *ARGS)
STATIC = ExecutionMode(jnp.float32, quantized=True, act="static")


def plan_of(cut):
    rule = Rule(".*", Scheme(8, channel_axis=-1), Scheme(8, symmetric=False), cut=cut)
    return make_plan([rule], find_sites(Shortcut(), PARAMS, *ARGS), PARAMS)


@pytest.mark.parametrize(("cut", "dots"), [(None, 1), ("joined", 2), (4, 4)])
@pytest.mark.parametrize("attempt", [0, 3])  # with channels as they are, and filled up to whole lanes
def test_a_dot_for_each_part(cut, dots, attempt):
    (call,) = network_of(Shortcut(), PARAMS, *ARGS).calls
    plan = plan_of(cut)
    program = lowered_call(call, STATIC, plan.by_path["shortcut"], attempt).exported.mlir_module()
    found = program.count("stablehlo.convolution(") + program.count("stablehlo.dot_general")
    assert found == dots


def test_other_parts_are_another_program():
    (call,) = network_of(Shortcut(), PARAMS, *ARGS).calls
    keys = {_compose._same(call, STATIC, plan_of(cut)) for cut in (None, "joined", 4)}
    assert len(keys) == 3
    assert len({_compose._same(call, ExecutionMode(), plan_of(cut)) for cut in (None, "joined", 4)}) == 1


def test_shapes_alone_are_priced():
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), PARAMS)
    (call,) = network_of(Shortcut(), shapes, *ARGS).calls
    whole, cut = (lowered_call(call, STATIC, plan_of(how).by_path["shortcut"]).param_bytes for how in (None, "joined"))
    assert whole < cut < 1.5 * whole, "scales and sums of codes for each part"
