"""Every recipe, with every number of bits, keeps one contract. A new recipe is one row of RECIPES."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import SHAPE, Tiny, toy_denoiser

from jaxdq import apply, calibrate, ddim, quantize, recipes, restore, save
from jaxdq.evaluation import noise_sqnr_per_step_db
from jaxdq.grid import QTensor
from jaxdq.sampling import trajectories

SAMPLER = ddim(4)
DENOISER = toy_denoiser(Tiny())
RECIPES = {
    "minmax": lambda bits: recipes.minmax(*bits),
    "uniform_groups": lambda bits: recipes.uniform_groups(*bits, num_groups=2),
    "adpdm": lambda bits: recipes.adpdm(*bits, num_groups=2),
}
# (weight bits, activation bits) -> the least mean SQNR in dB. Rounding a layer's inputs to b bits over a range of k
# deviations is 6.02 b + 10.8 - 20 log10 k below the signal; with k = 10, its weights alike, and two such layers
# (3 dB each): 6.02 b + 10.8 - 20 - 6, and 2 dB for luck with 8 images.
FLOORS = {(8, 8): 31, (4, 6): 7}
LEARNS = {"adpdm"}  # half a minute a row: the second one only in CI
ROWS = [
    pytest.param(
        (name, bits),
        id=f"{name}-w{bits[0]}a{bits[1]}",
        marks=[pytest.mark.slow] if name in LEARNS and bits == (8, 8) else [],
    )
    for name in RECIPES
    for bits in FLOORS
]


@pytest.fixture(scope="module", params=ROWS)
def row(request):
    name, bits = request.param
    recipe = RECIPES[name](bits)
    calib = calibrate(DENOISER, recipe, sampler=SAMPLER, key=jax.random.key(0), num_images=8)
    return recipe, bits, calib, jax.jit(quantize)(DENOISER.params, calib)


@pytest.fixture(scope="module")
def held_out():
    return trajectories(DENOISER, DENOISER.params, sampler=SAMPLER, num_images=8, key=jax.random.key(1))


def test_calibration_is_finite_and_grouped_as_asked(row):
    recipe, _, calib, _ = row
    assert calib.acts.scale.shape[0] == recipe.num_groups == len(np.unique(calib.acts.group_of_t))
    assert np.isfinite(calib.acts.scale).all() and (np.asarray(calib.acts.scale) > 0).all()


def test_planned_kernels_are_integers_within_bounds(row):
    _, (weight_bits, _), calib, qparams = row
    assert any(site.is_integer and site.weight.bits == weight_bits for site in calib.plan.sites)
    for site in calib.plan.sites:
        kernel = qparams.params[site.path]["kernel"]
        assert isinstance(kernel, QTensor) == (site.weight is not None)
        if site.weight is not None:
            codes, (low, high) = np.asarray(kernel.qvalue).astype(int), site.weight.bounds
            assert kernel.qvalue.dtype == site.weight.storage_dtype and low <= codes.min() <= codes.max() <= high


def test_integer_path_is_finite_and_above_its_floor(row, held_out):
    _, bits, _, qparams = row
    sqnr_db = noise_sqnr_per_step_db(DENOISER, qparams, held_out)
    assert np.isfinite(sqnr_db).all()
    assert sqnr_db.mean() > FLOORS[bits]


def test_restores_bit_exact(row, tmp_path):
    qparams = row[3]
    save(tmp_path / "q", qparams)
    restored = restore(tmp_path / "q")
    assert restored.plan == qparams.plan and jax.tree.structure(restored) == jax.tree.structure(qparams)
    for one, two in zip(jax.tree.leaves(qparams), jax.tree.leaves(restored), strict=True):
        assert one.dtype == two.dtype and np.asarray(one).tobytes() == np.asarray(two).tobytes()


def test_compiles_once_for_all_times(row):
    qparams, traces = row[3], []

    @jax.jit
    def run(qparams, x, t):
        traces.append(t)
        return apply(DENOISER.module, qparams, x, t)

    for t in (0, 7, 19):
        run.lower(qparams, np.zeros((1, *SHAPE), np.float32), jnp.int32(t))
    assert len(traces) == 1
