import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdq.linen._kinds import einsum_dims


@pytest.mark.parametrize(
    ("spec", "dims", "order"),
    [
        ("ij,jk->ik", (((1,), (0,)), ((), ())), (0, 1)),
        ("ij,jk->ki", (((1,), (0,)), ((), ())), (1, 0)),
        ("bqd, bkd -> bqk", (((2,), (2,)), ((0,), (0,))), (0, 1, 2)),
        ("bqhd,bkhd->bhqk", (((3,), (3,)), ((0, 2), (0, 2))), (0, 1, 2, 3)),
        ("bhqk,bkhd->bqhd", (((3,), (1,)), ((0, 1), (0, 2))), (0, 2, 1, 3)),
        ("abc,abc->", (((0, 1, 2), (0, 1, 2)), ((), ())), ()),
    ],
)
def test_golden_einsum_dims(spec, dims, order):
    assert einsum_dims(spec) == (dims, order)
    rng = np.random.default_rng(0)
    lhs, rhs = (rng.integers(-9, 9, (2,) * len(part)) for part in spec.replace(" ", "").split("->")[0].split(","))
    out = jax.jit(lambda: jnp.transpose(jax.lax.dot_general(lhs, rhs, dims), order))()
    assert (out == np.einsum(spec.replace(" ", ""), lhs, rhs)).all()


@pytest.mark.parametrize(
    "spec",
    [
        "ij->ji",  # one operand
        "ij,jk,kl->il",  # three
        "ij,jk",  # no output
        "...j,jk->...k",  # ellipsis
        "ii,ij->j",  # repeated label
        "ij,jk->k",  # i is dropped: a sum of its own
        "ij,jk->ikz",  # z comes from nowhere
        "i,j->ij",  # nothing to contract
        "bi,bi->bi",  # nor here
    ],
)
def test_einsums_that_are_not_one_dot_are_refused(spec):
    assert einsum_dims(spec) is None
