"""What published methods produce goes through the whole house: a throwaway stub of each result is one row.

calibrate -> quantize -> apply (scalar and vector t) -> sample -> save -> restore -> evaluate, with the method's result
put in by a calibrator of its own and nothing else changed.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import NUM_TIMESTEPS, SHAPE, Tiny, given, toy_calibration, toy_denoiser, toy_params, toy_plan

from jaxdq import InputError, Rule, Scheme, apply, calibrate, ddim, quantize, restore, sample, save
from jaxdq.calibration import (
    Evidence,
    Recipe,
    calibrator,
    fit_weights,
    observe,
    run_recipe,
    share,
    share_uniformly,
    weight_grids,
)
from jaxdq.evaluation import evaluate
from jaxdq.grid import Grid, QParams, QTensor, dequantize
from jaxdq.linen import Acts, Correction, Instead, Parts, Switch, TimeTable, kernel_at
from jaxdq.metrics import sqnr_db
from jaxdq.observers import minmax, minmax_weights
from jaxdq.recipes import default_rules

T, C = NUM_TIMESTEPS, SHAPE[-1]
KEY, SAMPLER = jax.random.key(0), ddim(2, eta=1.0)
DENOISER = toy_denoiser(Tiny())
TIMES = np.arange(T, dtype=np.float32)
W8, W4 = Scheme(8, channel_axis=-1), Scheme(4, channel_axis=-1)


class Method(NamedTuple):
    """A stub: the calibrators that stand after min-max ranges, and the sampler it is drawn with."""

    calibrators: tuple
    sampler: Any = ddim(2)


def deciding(**decisions):
    """A calibrator that decides this; functions of work are called with it."""

    @calibrator(needs=(Grid, Evidence, Acts), gives=(Grid, Acts))
    def stub():
        def run(work, key):
            return work.deciding(**{name: d(work) if callable(d) else d for name, d in decisions.items()})

        return run

    return stub()


def codes_of(work, path, change=lambda codes: codes):
    """The codes of a kernel, rounded to nearest and then changed."""
    kernel = quantize(DENOISER.params, work.calib).params[path]["kernel"]
    return dataclasses.replace(kernel, qvalue=jnp.asarray(change(kernel.qvalue), kernel.qvalue.dtype))


def row_for_every_t(work):
    """Scales that move smoothly with t, a row each."""
    rise = (1 + TIMES / T)[:, None]
    acts = work.acts
    return Acts(acts.scale * rise, jnp.tile(acts.zero_point, (T, 1)), jnp.arange(T, dtype=jnp.int32), acts.columns)


def time_table(work):
    """What the layer `time` returns at every t, for one row."""
    angle = TIMES[:, None] * 2.0 ** -jnp.arange(4)
    layer = DENOISER.params["time"]
    return {"time": TimeTable(jnp.asarray(TIMES, jnp.float32), jnp.cos(angle) @ layer["kernel"] + layer["bias"])}


def with_site(plan, path, **changes):
    sites = tuple(dataclasses.replace(site, **changes) if site.path == path else site for site in plan.sites)
    return dataclasses.replace(plan, sites=sites)


@calibrator(needs=(Grid, Evidence), gives=(Grid, Acts))
def fewer_bits_where_looking_said_so():
    """Bits per site that change after observing: the plan moves, weights and activations are fitted again."""

    def run(work, key):
        work = work.deciding(plan=with_site(work.plan, "conv", weight=conv_scheme(4), act=Scheme(6, symmetric=False)))
        work = work.deciding(weights=weight_grids(work.denoiser.params, work.plan, minmax_weights()))
        return share(work, np.zeros(work.data.num_steps, int), 1)

    return run


def conv_scheme(bits):
    return Scheme(bits, channel_axis=(3,))


@calibrator(needs=(Grid, Evidence, Acts), gives=(Grid, Acts))
def split(sizes, has_own_inputs=False, low_rank=0, input_scale=False, path="conv"):
    """A kernel cut along its input channels; pieces of the input take the whole input's grid, cut to what they span."""

    def run(work, key):
        kernel, site = kernel_at(DENOISER.params, path), work.plan.by_path[path]
        axis = 0 if site.site.kind == "dense" else kernel.ndim - 2
        branch = jnp.full((*kernel.shape[:-1], low_rank), 0.01), jnp.full((low_rank, kernel.shape[-1]), 0.1)
        branch = branch if low_rank else None
        scale = 2.0 ** (jnp.arange(kernel.shape[axis]) % 3 - 1.0) if input_scale else None
        rest = kernel if branch is None else kernel - jnp.tensordot(*branch, axes=1)
        rest = rest if scale is None else rest / scale.reshape([-1 if a == axis else 1 for a in range(kernel.ndim)])
        pieces = jnp.split(rest, np.cumsum(sizes)[:-1], axis)
        grids = tuple(Grid(minmax_weights()(piece, site.weight), site.weight) for piece in pieces)
        plan = with_site(work.plan, path, parts=tuple(sizes), has_own_inputs=has_own_inputs)
        column = {name: index for index, (name, _) in enumerate(work.acts.columns)}
        own = [column[name.partition("[")[0]] for name, _ in plan.columns]
        wider = 2.0 if input_scale else 1.0
        acts = Acts(wider * work.acts.scale[:, own], work.acts.zero_point[:, own], work.acts.group_of_t, plan.columns)
        weights = {**work.calib.weights, path: Parts(grids, scale, branch)}
        return work.deciding(plan=plan, acts=acts, weights=weights)

    return run


ONES = np.ones((T, C), np.float32)
HALF = Instead(None, TIMES < T / 2)
METHODS = {
    "ptqd": Method(
        (
            deciding(
                correction=Correction(
                    output_gain=1 / (1 + 0.01 * TIMES / T),
                    output_shift=0.001 * ONES,
                    output_std=np.where(TIMES > 5, 0.1, 0),
                )
            ),
        ),
        SAMPLER,
    ),
    "step-aware bits": Method(
        (deciding(instead=lambda work: Instead(dataclasses.replace(work.calib, acts=row_for_every_t(work)), HALF.at)),)
    ),
    "tac": Method((deciding(correction=Correction(1 + 0.01 * ONES, None, 0.001 * ONES)),)),
    "pcr": Method((deciding(acts=row_for_every_t), deciding(instead=HALF)._replace(name="relax"))),
    "fidelity": Method((deciding(acts=row_for_every_t, tables=time_table),)),
    "qdiffusion": Method(
        (
            deciding(
                weights=lambda work: {
                    **work.calib.weights,
                    "dense": codes_of(work, "dense", lambda q: np.clip(q.astype(int) + 1, -127, 127)),
                }
            ),
            split((3, 5), has_own_inputs=True),
        )
    ),
    "obc": Method(
        (
            deciding(
                weights=lambda work: {
                    **work.calib.weights,
                    "conv": codes_of(work, "conv", lambda q: np.where(abs(q.astype(int)) > 40, q.astype(int), 0)),
                },
                params={"conv/bias": DENOISER.params["conv"]["bias"] + 0.01},
            ),
        )
    ),
    "quest": Method((deciding(params={"time/kernel": 1.01 * DENOISER.params["time"]["kernel"]}),)),
    "tdq": Method((deciding(acts=row_for_every_t),)),
    "tmpq": Method((fewer_bits_where_looking_said_so(),), ddim(timesteps=(17, 9, 4, 0))),
    "weight groups": Method((split((2, 2, 2, 2)),)),
    "low rank": Method((split((8,), low_rank=2),)),
    "input scale": Method((split((8,), input_scale=True), split((4, 4), path="dense")._replace(name="again"))),
}
# What each row has that plain min-max has not, so that no stub is a no-op: the least change of the outputs.
LEAST_CHANGE = 1e-5
# One of each carrier: the others would only compile another program of the same parts.
EVALUATED = ("ptqd", "step-aware bits", "fidelity", "qdiffusion")


@functools.cache
def before():
    """Min-max ranges of one group: what every method starts from, made once."""
    recipe = Recipe(
        "plain", default_rules(8, 8), (fit_weights(minmax_weights()), observe(minmax()), share_uniformly(1))
    )
    return run_recipe(DENOISER, recipe, sampler=ddim(2), key=KEY, num_images=4)


def start(work, key):
    return work.knowing(before().fact(Evidence)).deciding(weights=before().calib.weights, acts=before().acts)


@functools.cache
def made(name):
    method = METHODS[name]
    recipe = Recipe(name, default_rules(8, 8), (given("plain", Grid, Evidence, Acts, run=start), *method.calibrators))
    calib = calibrate(DENOISER, recipe, sampler=ddim(2), key=KEY, num_images=4)
    return method, calib, QUANTIZE(DENOISER.params, calib)


# Rows whose carriers other rows have too: in CI.
SLOW = {"step-aware bits", "quest", "pcr", "weight groups"}


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in METHODS]
)
def row(request):
    return made(request.param)


@pytest.fixture(scope="module")
def plain():
    return QUANTIZE(DENOISER.params, before().calib)


QUANTIZE = jax.jit(quantize)
RUN = jax.jit(lambda params, x, t: apply(DENOISER.module, params, x, t))
X, TIMES_OF_ROWS = jax.random.normal(KEY, (4, *SHAPE)), jnp.array([0, 7, 12, 19])


@jax.jit
def row_by_row(params, x, t):
    """Each image by a scalar t, as a sampler's loop calls the network."""
    return jax.lax.map(lambda row: apply(DENOISER.module, params, row[0][None], row[1])[0], (x, t))


def test_runs_under_jit_and_a_vector_of_times_is_each_of_them(row, plain):
    qparams = row[2]
    vector = RUN(qparams, X, TIMES_OF_ROWS)
    np.testing.assert_allclose(vector, row_by_row(qparams, X, TIMES_OF_ROWS), rtol=1e-4, atol=1e-5)
    exact = RUN(DENOISER.params, X, TIMES_OF_ROWS)
    assert np.isfinite(vector).all() and abs(vector - exact).max() < 0.3 * abs(exact).max()
    assert abs(vector - RUN(plain, X, TIMES_OF_ROWS)).max() > LEAST_CHANGE, "the stub changes nothing"


def test_samples_saves_restores_bit_for_bit(row, tmp_path):
    method, _, qparams = row
    drawn = {"sampler": method.sampler, "num_images": 4, "key": jax.random.key(1)}
    images = sample(DENOISER, qparams, **drawn)
    save(tmp_path / "q", qparams)
    restored = restore(tmp_path / "q")
    assert jax.tree.structure(restored) == jax.tree.structure(qparams)
    for one, two in zip(jax.tree.leaves(qparams), jax.tree.leaves(restored), strict=True):
        assert one.dtype == two.dtype and np.asarray(one).tobytes() == np.asarray(two).tobytes()
    np.testing.assert_array_equal(sample(DENOISER, restored, **drawn), images)


@pytest.mark.parametrize("name", EVALUATED)
def test_evaluates(name):
    method, _, qparams = made(name)
    found = evaluate(DENOISER, qparams, sampler=method.sampler, key=jax.random.key(2), num_images=4)
    assert np.isfinite(found.image_psnr_db) and np.nanmin(found.noise_sqnr_db) > 10


def test_no_correction_gives_the_plain_images_to_the_bit(plain):
    nothing = Correction(jnp.ones((T, C)), jnp.zeros((T, C)), jnp.zeros(T), jnp.full(T, jnp.nan))
    for sampler in (ddim(2), SAMPLER):
        drawn = {"sampler": sampler, "num_images": 4, "key": KEY}
        corrected = dataclasses.replace(plain, correction=nothing)
        np.testing.assert_array_equal(sample(DENOISER, corrected, **drawn), sample(DENOISER, plain, **drawn))


def test_golden_a_correction_is_what_it_says(plain):
    x, t = X, TIMES_OF_ROWS
    gain, shift, at_input = (jax.random.normal(jax.random.key(i), (T, C)) for i in range(3))
    corrected = dataclasses.replace(plain, correction=Correction(gain, shift, at_input))
    by_hand = RUN(plain, x + at_input[t][:, None, None], t) * gain[t][:, None, None] + shift[t][:, None, None]
    np.testing.assert_allclose(RUN(corrected, x, t), by_hand, rtol=1e-5, atol=1e-6)


def test_fresh_noise_is_what_the_correction_says(plain):
    quiet = dataclasses.replace(plain, correction=Correction(output_std=jnp.full(T, 1e3)))
    draw = functools.partial(sample, DENOISER, sampler=SAMPLER, num_images=4, key=KEY)
    exact = draw(plain)
    assert abs(draw(quiet) - exact).max() > 0.01
    again = dataclasses.replace(quiet, correction=Correction(output_std=jnp.zeros(T)))
    np.testing.assert_array_equal(draw(again), exact)


def test_a_switch_runs_each_network_at_its_times():
    _, calib, switch = made("step-aware bits")
    assert isinstance(switch, Switch) and calib.instead is not None
    x = jax.random.normal(KEY, (2, *SHAPE))
    for t in (0, 9, 10, 19):
        np.testing.assert_array_equal(RUN(switch, x, jnp.int32(t)), RUN(switch.choices[int(t < 10)], x, jnp.int32(t)))


class TimeTables(Tiny):
    """A network that calls its own arrays and layers as tables over time are called elsewhere."""

    @nn.compact
    def __call__(self, x, t):
        learned = self.param("time_table", nn.initializers.normal(), (T, C))
        return nn.Dense(C, name="tables")(Tiny(name="time table")(x + learned[jnp.asarray(t, int)], t))


def test_no_name_in_a_network_is_taken_for_a_table():
    x, params = jax.random.normal(KEY, (2, *SHAPE)), toy_params(TimeTables(), jnp.zeros((1, *SHAPE)), jnp.int32(0))
    plan = toy_plan(TimeTables(), params, [Rule(".*", W8, Scheme(8, symmetric=False))], x, np.int32(3))
    qparams = quantize(params, toy_calibration(TimeTables(), params, plan, np.zeros(T), x, np.int32(3)))
    expected = jax.jit(TimeTables().apply)({"params": params}, x, 3)
    assert sqnr_db(expected, jax.jit(functools.partial(apply, TimeTables()))(qparams, x, 3)) > 25


def test_times_outside_are_nan_under_jit_where_the_float_network_runs_too():
    _, _, relaxed = made("pcr")
    x = jax.random.normal(KEY, (2, *SHAPE))
    for t in (jnp.float32(-1), jnp.float32(T + 1)):
        assert np.isnan(RUN(relaxed, x, t)).all()
    assert np.isnan(RUN(relaxed, x, jnp.array([-1, 3]))).all(axis=(1, 2, 3)).tolist() == [True, False]


def test_a_table_is_the_layer_it_stands_for(plain):
    _, _, tabled = made("fidelity")
    assert set(tabled.params["time"]) == {"(time table)"} and tabled.plan.by_path["time"].reason
    one_row = dataclasses.replace(tabled, acts=plain.acts)
    float_time = {**plain.params, "time": DENOISER.params["time"]}
    sites = tuple(dataclasses.replace(site, weight=None) if site.path == "time" else site for site in plain.plan.sites)
    untabled = dataclasses.replace(plain, params=float_time, plan=dataclasses.replace(plain.plan, sites=sites))
    for t in (jnp.int32(5), TIMES_OF_ROWS):
        np.testing.assert_allclose(RUN(one_row, X, t), RUN(untabled, X, t), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["qdiffusion", "weight groups", "low rank", "input scale"])
def test_oracle_parts_are_their_float_twin(name):
    """The integer path against float arithmetic on what the codes stand for, at one site alone."""
    _, _, qparams = made(name)
    path = "conv"
    kernel, site = qparams.params[path]["kernel"], qparams.plan.by_path[path]
    pieces = [dequantize(part) for part in kernel.parts]
    assert all(isinstance(part, QTensor) for part in kernel.parts)
    whole = jnp.concatenate(pieces, axis=2)
    if kernel.input_scale is not None:
        whole = whole * kernel.input_scale[:, None]
    if kernel.low_rank is not None:
        whole = whole + jnp.tensordot(*kernel.low_rank, axes=1)
    # Rounded to nearest, each part on its own grid: half a step of each.
    steps = jnp.concatenate([jnp.broadcast_to(p.qparams.scale, p.shape) for p in kernel.parts], axis=2)
    steps = steps if kernel.input_scale is None else steps * kernel.input_scale[:, None]
    assert (abs(whole - DENOISER.params[path]["kernel"]) <= 0.5 * steps * (1 + 1e-4)).all()
    assert site.parts == tuple(part.shape[2] for part in kernel.parts)


def test_parts_that_the_plan_does_not_have_are_refused():
    _, calib, _ = made("weight groups")
    whole = dataclasses.replace(calib, plan=with_site(calib.plan, "conv", parts=(4, 4)))
    with pytest.raises(InputError, match=r"parts of \(4, 4\) input channels .* has 4 of"):
        quantize(DENOISER.params, whole)
    one = {**calib.weights, "conv": Grid(QParams(jnp.ones((1, 1, 1, 8))), conv_scheme(8))}
    with pytest.raises(InputError, match=r"cuts the kernel of 'conv' into parts of .* has not one scale for each"):
        quantize(DENOISER.params, dataclasses.replace(calib, weights=one))


def test_a_table_for_no_module_is_refused():
    _, calib, _ = made("tdq")
    with pytest.raises(InputError, match=r"has tables for \['nowhere'\] and params have no such module"):
        tables = {"nowhere": TimeTable(jnp.arange(T), jnp.zeros((T, 8)))}
        quantize(DENOISER.params, dataclasses.replace(calib, tables=tables))
