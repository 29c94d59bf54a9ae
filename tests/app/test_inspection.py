"""What is foretold of a model equals what becomes of it."""

import jax
import pytest
from scripts_by_name import script
from toys import toy_denoiser

import jaxdq
from jaxdq.app.inspection import inspection_of
from jaxdq.calibration import weight_grids
from jaxdq.linen import kernel_at, unfitted_acts
from jaxdq.observers import minmax_weights


def test_rows_add_up_to_the_plan():
    found = inspection_of(toy_denoiser())
    rows = found.site_rows()
    assert [path for row in rows for path in sorted(row.paths)] and sum(row.mac_fraction for row in rows) == (
        pytest.approx(1)
    )
    assert sorted(path for row in rows for path in row.paths) == sorted(site.path for site in found.plan.sites)
    integer = sum(row.mac_fraction for row in rows if row.is_integer)
    assert integer == pytest.approx(found.plan.integer_mac_fraction)
    products = sum(row.mac_fraction for row in rows if row.what == "attention stays in float")
    assert found.num_products == 2 and products > 0
    assert found.mac_fraction_with_products == pytest.approx(integer + products)


def test_bytes_are_those_of_the_quantized_params():
    denoiser = toy_denoiser()
    found = inspection_of(denoiser)
    assert found.num_params == sum(leaf.size for leaf in jax.tree.leaves(denoiser.params))
    grids = weight_grids(denoiser.params, found.plan, minmax_weights())
    calib = jaxdq.Calibration(grids, unfitted_acts(found.plan.columns, 1), found.plan)
    made = jax.jit(jaxdq.quantize)(denoiser.params, calib)
    assert found.bytes_at["W8"] == jaxdq.stored_bytes(made)
    assert found.bytes_at["W4"] < found.bytes_at["W8"] < found.float32_bytes
    assert kernel_at(made.params, "query").scheme.bits == 8


@pytest.mark.slow
def test_golden_counts_of_stable_diffusion_1():
    counting = script("count_stable_diffusion")
    row = counting.count(counting.MODELS["v1-4"])
    assert (row["params"], row["sites"], row["products"], row["integer_sites"]) == (859_520_964, 346, 64, 256)
    assert (row["integer_mac_fraction"], row["integer_mac_fraction_with_products"]) == (0.8428, 0.9997)
    assert row["bytes"]["float32"] == 4 * row["params"]
    assert row["blocks"]["blocks"] == 77 and 20e6 < row["blocks"]["bytes_of_a_state"] < 22e6
    assert 0.25 < row["of_float32"]["W8"] < 0.26 and 0.125 < row["of_float32"]["W4"] < 0.13
