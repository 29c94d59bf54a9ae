"""What the TPU's own compiler makes of a quantized network. Needs `pip install 'jaxdq[tpu-model]'`, and no TPU."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest
from jax import export

import jaxdq
from jaxdq.calibration import plan_for, weight_ranges
from jaxdq.cost import CHIPS, compile_for
from jaxdq.cost._compiler import NEEDS
from jaxdq.linen import Calibration
from jaxdq.observers import minmax_weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(map(importlib.util.find_spec, NEEDS)), reason="the TPU's compiler is not installed"),
]
GROUPS = 8


@pytest.mark.parametrize("weight_bits", [8, 4])
def test_integer_sites_are_int8_contractions_and_no_conditional_stands_around_one(weight_bits):
    denoiser = jaxdq.load_denoiser("digits")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), denoiser.params)
    plan = plan_for(denoiser, jaxdq.recipes.minmax(weight_bits, 8))
    columns = len(plan.tables)
    calib = Calibration(
        weights=weight_ranges(params, plan, minmax_weights()),
        act_scale=jnp.full((GROUPS, columns), 0.05),
        act_zero_point=jnp.zeros((GROUPS, columns), jnp.int32),
        group_of_t=jnp.arange(1000, dtype=jnp.int32) // 125,
        plan=plan,
    )
    leaves, tree = jax.tree.flatten(jaxdq.quantize(params, calib))

    def call(x, t, *leaves):
        return jaxdq.apply(denoiser.module, jax.tree.unflatten(tree, leaves), x, t)

    x, t = jax.ShapeDtypeStruct((8, *denoiser.shape), jnp.bfloat16), jax.ShapeDtypeStruct((), jnp.int32)
    program = export.export(jax.jit(call), platforms=["tpu"])(x, t, *leaves)
    (found,) = compile_for([program], CHIPS["v5e"], profile=False)
    integer = sum(site.is_integer for site in plan.sites)
    contractions = found.program.contractions
    whole = {operands: n for operands, n in contractions.items() if set(operands.split(" x ")) <= {"s8", "s4"}}
    rest = {operands: n for operands, n in contractions.items() if operands not in whole}
    # A convolution may be a dot for each of its taps; a product with one row may be no contraction at all.
    assert sum(whole.values()) >= integer
    assert sum(rest.values()) <= len(plan.sites) - integer
    assert not [operands for operands in rest if re.search(r"\bs\d", operands)], rest
    assert found.program.conditionals == 0
