"""Every recipe keeps one contract, on sites of 4 and of 8 bits. A new recipe is one row of RECIPES.

Each row is calibrated once, with all that is hard at the same time: a plan of mixed bits, a network that is told what
to draw, and a sampler that adds noise at every step.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import SHAPE, Tiny, toy_denoiser

from jaxdq import Rule, Scheme, apply, calibrate, ddpm, quantize, recipes, restore, save
from jaxdq.calibration import RangeSettings, ReconstructionSettings, SearchSettings
from jaxdq.evaluation import noise_sqnr_per_step_db
from jaxdq.grid import QTensor
from jaxdq.sampling import trajectories

# A label joins the time before its layer: no tables.
pytestmark = pytest.mark.filterwarnings("ignore:no layer of 'toy' depends on the time alone")
SAMPLER = ddpm(4)
LABELS = np.random.default_rng(5).standard_normal((3, 4)).astype(np.float32)
DENOISER = toy_denoiser(Tiny(), (LABELS,))
SEARCH, LEARNING = SearchSettings(num_updates=10, moves=1), RangeSettings(num_updates=10, judge_every=5, rows=8)
RECIPES = {
    "minmax": recipes.minmax(),
    "minmax-percentile": recipes.minmax(ranges="percentile"),
    "uniform_groups": recipes.uniform_groups(num_groups=2),
    "uniform_groups-learned": recipes.uniform_groups(num_groups=2, ranges="learned", learning=LEARNING),
    "uniform_groups-gptq": recipes.uniform_groups(num_groups=2, weights="gptq"),
    "uniform_groups-obq": recipes.uniform_groups(num_groups=2, weights="obq"),
    "qdiffusion": recipes.qdiffusion(
        8, 8, 2, reconstruction=ReconstructionSettings(num_updates=20, num_states=32, rows=8)
    ),
    "obc": recipes.obc(num_groups=2, method="obq", sparsity="3:4"),
    "ptqd": recipes.ptqd(num_groups=2),
    "tac": recipes.chain(recipes.uniform_groups(num_groups=2), recipes.tac()),
    "time_tables": recipes.time_tables(num_groups=2),
    "pcr": recipes.pcr(num_groups=2),
    "fidelity": recipes.fidelity(num_groups=2, learning=LEARNING),
    "adpdm": recipes.adpdm(num_groups=2, search=SEARCH, learning=LEARNING),
    "adpdm-minmax": recipes.adpdm(num_groups=2, search=SEARCH, ranges="minmax"),
}
# Variants of recipes whose own rows cover most of them: in CI.
SLOW = {"minmax-percentile", "uniform_groups-obq", "uniform_groups-learned", "adpdm-minmax"}
# The least mean SQNR in dB. Rounding a layer's inputs to b bits over a range of k deviations is 6.02 b + 10.8 -
# 20 log10 k below the signal; with k = 10 and its weights alike (3 dB), 6.02 * 4 + 10.8 - 20 - 3 for the layer of 4
# bits, beside which that of 8 counts for nothing; and 2 dB for luck with 8 images.
FLOOR_DB = 9


def mixed(recipe):
    """The recipe with 4 bits at one of its sites."""
    four = Rule("dense", Scheme(4, channel_axis=-1), Scheme(4, symmetric=False))
    return dataclasses.replace(recipe, rules=lambda sites: [four, *recipe.rules(sites)])


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in RECIPES]
)
def row(request):
    recipe = mixed(RECIPES[request.param])
    calib = calibrate(DENOISER, recipe, sampler=SAMPLER, key=jax.random.key(0), num_images=8)
    return recipe, calib, jax.jit(quantize)(DENOISER.params, calib)


@pytest.fixture(scope="module")
def held_out():
    return trajectories(DENOISER, DENOISER.params, sampler=SAMPLER, num_images=8, key=jax.random.key(1))


def test_calibration_is_finite_and_grouped_as_asked(row):
    recipe, calib, _ = row
    # Those that fit each step keep what they found where images come closer.
    fits_steps = "fit_progressively" in {one.name for one in recipe.calibrators}
    assert calib.acts.num_groups in {recipe.num_groups, SAMPLER.num_steps if fits_steps else recipe.num_groups}
    assert calib.acts.scale.shape == (calib.acts.num_groups, len(calib.plan.columns))
    assert len(np.unique(calib.acts.group_of_t)) == calib.acts.num_groups
    assert np.isfinite(calib.acts.scale).all() and (np.asarray(calib.acts.scale) > 0).all()


def test_planned_kernels_are_integers_within_bounds(row):
    _, calib, qparams = row
    assert {site.site.path: (site.weight.bits, site.act.bits) for site in calib.plan.sites if site.is_integer} == {
        "conv": (8, 8),
        "dense": (4, 4),
    }
    for site in calib.plan.sites:
        kernel = qparams.params[site.path]["kernel"]
        assert isinstance(kernel, QTensor) == (site.weight is not None)
        if site.weight is not None:
            codes, (low, high) = np.asarray(kernel.qvalue).astype(int), site.weight.bounds
            assert kernel.qvalue.dtype == site.weight.storage_dtype and low <= codes.min() <= codes.max() <= high
    for (_, scheme), zero_point in zip(calib.plan.columns, np.asarray(calib.acts.zero_point).T, strict=True):
        assert scheme.bounds[0] <= zero_point.min() <= zero_point.max() <= scheme.bounds[1]


def test_integer_path_is_finite_and_above_its_floor(row, held_out):
    sqnr_db = noise_sqnr_per_step_db(DENOISER, row[-1], held_out)
    assert np.isfinite(sqnr_db).all()
    assert sqnr_db.mean() > FLOOR_DB


def test_restores_bit_exact(row, tmp_path):
    qparams = row[-1]
    save(tmp_path / "q", qparams)
    restored = restore(tmp_path / "q")
    assert restored.plan == qparams.plan and jax.tree.structure(restored) == jax.tree.structure(qparams)
    for one, two in zip(jax.tree.leaves(qparams), jax.tree.leaves(restored), strict=True):
        assert one.dtype == two.dtype and np.asarray(one).tobytes() == np.asarray(two).tobytes()


def test_compiles_once_for_all_times(row):
    qparams, traces = row[-1], []

    @jax.jit
    def run(qparams, x, t, label):
        traces.append(t)
        return apply(DENOISER.module, qparams, x, t, label)

    for t in (0, 7, 19):
        run.lower(qparams, np.zeros((1, *SHAPE), np.float32), jnp.int32(t), LABELS[:1])
    assert len(traces) == 1
