import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdq.calibration.tools.proxy import Proxy
from jaxdq.calibration.tools.relaxation import (
    SearchState,
    discretisation,
    initial_logits,
    make_update,
    mean_entropy,
    relative_table,
)

KEY = jax.random.key(0)
S, G, A, C = 9, 3, 3, 4


def random_proxy(seed=0, num_steps=S):
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.1, 0.6, (C, A)).astype(np.float32)
    zero_point = rng.integers(-4, 4, (C, A)).astype(np.int32) * np.array([1, 0, 1], np.int32)
    return Proxy(rng.exponential(size=(num_steps, A, C)), scale, zero_point)


def one_hot(groups, num_groups=G):
    """Logits whose softmax is 1 and 0 in float32: exp(-200) is."""
    return jnp.asarray(200.0 * np.moveaxis(np.eye(num_groups)[groups], -1, 1), jnp.float32)


def groups_of(seed=0):
    groups = np.random.default_rng(seed).integers(0, G, S)
    groups[:G] = np.arange(G)  # each occurs
    return groups


# --- The terms of the loss -------------------------------------------------------------------------------------------


def test_oracle_discretisation_of_a_choice_is_the_proxy_s_cost():
    for seed in range(4):
        proxy, groups = random_proxy(seed), groups_of(seed)
        soft, choice = discretisation(one_hot(groups), relative_table(proxy))
        whole = proxy.cost(np.zeros(S, int))
        # Sums of S A float32 numbers.
        np.testing.assert_allclose(soft, proxy.cost(groups) / whole, rtol=1e-5)
        scale, zero_point = proxy.grids(groups, G)
        np.testing.assert_array_equal(proxy.scale[choice, np.arange(A)], scale)
        np.testing.assert_array_equal(proxy.zero_point[choice, np.arange(A)], zero_point)


def test_one_group_costs_1_and_an_empty_table_nothing():
    table = relative_table(random_proxy())
    np.testing.assert_allclose(discretisation(jnp.zeros((S, 1)), table)[0], 1.0, rtol=1e-5)
    perfect = random_proxy()._replace(table=np.zeros((S, A, C)))
    assert float(discretisation(jnp.zeros((S, G)), relative_table(perfect))[0]) == 0.0


def test_property_discretisation_is_concave_in_the_shares():
    table = jnp.asarray(random_proxy().table, jnp.float32)
    cost = jax.jit(jax.vmap(lambda shares: discretisation(jnp.log(shares), table)[0]))
    rng = np.random.default_rng(0)
    # Dirichlet's small parameter puts most of these near a choice, where the minimum's kinks are.
    one, two = np.moveaxis(rng.dirichlet(np.full(G, 0.3), (2, 200, S)), -1, 3).astype(np.float32) + 1e-6
    one, two = (shares / shares.sum(axis=2, keepdims=True) for shares in (one, two))
    part = rng.uniform(size=(200, 1, 1)).astype(np.float32)
    mixed, chord = cost(part * one + (1 - part) * two), part.ravel() * cost(one) + (1 - part.ravel()) * cost(two)
    assert (mixed >= chord * (1 - 1e-5)).all()
    assert (mixed > chord * 1.01).any()


def test_golden_entropy():
    assert float(mean_entropy(jnp.full((S, G), 3.7))) == pytest.approx(1.0, abs=1e-6)
    assert float(mean_entropy(one_hot(groups_of()))) == 0.0
    third = one_hot(groups_of()).at[: S // 3].set(0.0)
    assert float(mean_entropy(third)) == pytest.approx(1 / 3, abs=1e-6)
    # Shares 1/2, 1/4, 1/4: 3/2 log 2.
    row = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
    assert float(mean_entropy(row)) == pytest.approx(1.5 * np.log(2) / np.log(3), abs=1e-6)
    assert float(mean_entropy(jnp.zeros((S, 1)))) == 0.0


def test_logits_start_by_leaning_to_equal_spans():
    logits = np.asarray(initial_logits(12, 3, KEY))
    np.testing.assert_array_equal(logits.argmax(axis=1), np.arange(12) * 3 // 12)
    assert 0.5 < float(mean_entropy(jnp.asarray(logits))) < 1.0


# --- The search ------------------------------------------------------------------------------------------------------


NUM_UPDATES, OPTIMIZER = 100, optax.adam(0.2)


def search(table, logits):
    traces, make = [], make_update(OPTIMIZER, NUM_UPDATES, 0.5)
    update = jax.jit(lambda state, table: traces.append(table) or make(state, table))
    state, infos = SearchState(logits, OPTIMIZER.init(logits), jnp.zeros((), jnp.int32)), []
    for _ in range(NUM_UPDATES):
        state, info = update(state, table)
        infos.append(jax.device_get(info))
    assert len(traces) == 1
    return state, infos


def test_updates_anneal_to_a_choice():
    logits = initial_logits(S, G, KEY)
    state, infos = search(blocks_table(BLOCKS["unequal"]), logits)
    assert int(state.update) == NUM_UPDATES
    assert float(infos[0].entropy) == pytest.approx(float(mean_entropy(logits)), rel=1e-5) and infos[0].entropy > 0.5
    assert float(mean_entropy(state.logits)) < 0.05
    assert infos[-1].discretisation < infos[0].discretisation


BLOCKS = {
    "equal": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "unequal": [0, 0, 1, 1, 1, 1, 1, 2, 2],
    "apart": [0, 0, 1, 1, 1, 0, 2, 2, 2],
}


def blocks_table(groups):
    """Each block is free on a candidate of its own; one more candidate is half as bad as the others for all."""
    groups = np.tile(np.asarray(groups)[:, None], A)
    num_candidates = groups.max() + 2
    table = np.where(groups[..., None] == np.arange(num_candidates), 0.0, 1.0)
    table[..., -1] = 0.5
    scale = np.ones((num_candidates, A), np.float32)
    return relative_table(Proxy(table, scale, np.zeros((num_candidates, A), np.int32)))


def same_partition(one, two):
    return len(set(zip(one, two, strict=True))) == len(set(one)) == len(set(two))


@pytest.mark.parametrize("name", BLOCKS)
def test_the_search_finds_blocks_that_are_there(name):
    state, _ = search(blocks_table(BLOCKS[name]), initial_logits(S, G, KEY))
    assert same_partition(np.argmax(state.logits, axis=1).tolist(), BLOCKS[name])
