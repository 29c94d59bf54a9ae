"""States of blocks: from the network on integers, against the float one's outputs, spread over the steps."""

import jax
import jax.numpy as jnp
import numpy as np
from toys import Line, toy_denoiser

from jaxdq import Rule, Scheme, ddim
from jaxdq.calibration import Recipe, fit_weights, measure_sensitivity, observe, run_recipe, share_uniformly
from jaxdq.calibration.tools.states import states_of_blocks
from jaxdq.linen import cut_into_blocks, quantize
from jaxdq.observers import minmax, minmax_weights

KEY = jax.random.key(0)
RULES = [Rule("one|two", Scheme(4, channel_axis=-1), Scheme(4, symmetric=False)), Rule(".*", reason="an end")]


def states(num_states=9, state_bytes=2**30, batch_size=4):
    calibrators = (fit_weights(minmax_weights()), observe(minmax()), measure_sensitivity(2, 1), share_uniformly(1))
    recipe = Recipe("toy", lambda sites: RULES, calibrators)
    work = run_recipe(toy_denoiser(Line()), recipe, sampler=ddim(3), key=KEY, num_images=4)
    work = work.with_machine(batch_size=batch_size)
    x, t = jnp.zeros((1, *work.denoiser.shape)), jnp.int32(0)
    blocks, _ = cut_into_blocks(work.denoiser.module, work.denoiser.params, ("one", "two"), x, t)
    qparams = quantize(work.denoiser.params, work.calib)
    made = states_of_blocks(work, blocks, num_states, state_bytes, KEY)
    return work, [made(index, qparams) for index in range(len(blocks))]


def test_steps_are_even_and_targets_are_the_float_layers_own():
    work, (one, two) = states()
    assert len(one.step) == 9 and set(np.bincount(one.step)) == {3} and np.isclose(one.weight.mean(), 1)
    layer = work.denoiser.params["one"]
    # Before `one` all is float: what goes in is what the float layer takes.
    np.testing.assert_allclose(one.args[0] @ layer["kernel"] + layer["bias"], one.target[0], rtol=1e-4, atol=1e-5)
    # Before `two` is `one` on four bits.
    layer = work.denoiser.params["two"]
    off = np.abs(two.args[0] @ layer["kernel"] + layer["bias"] - two.target[0])
    assert off.max() > 1e-3


def test_bytes_bound_the_number_of_states():
    _, (one, _) = states()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(one)) // len(one.step)
    _, (few, _) = states(state_bytes=5 * size)
    assert len(few.step) == 5
    _, (few, _) = states(state_bytes=1)
    assert len(few.step) == 1
