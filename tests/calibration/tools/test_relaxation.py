import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdq.calibration.tools.proxy import Proxy
from jaxdq.calibration.tools.relaxation import (
    SearchProblem,
    SearchState,
    discretisation,
    initial_logits,
    make_update,
    mean_entropy,
    relaxed_apply,
    search_problem,
)
from jaxdq.calibration.tools.rows import Rows
from jaxdq.grid import QParams, Scheme, fake_quantize
from jaxdq.linen import apply_visited

KEY = jax.random.key(0)
S, G, A, C = 9, 3, 3, 4
SHAPE = (1, 2, 2)
A4, S4 = Scheme(4, symmetric=False), Scheme(4)
COLUMNS = {"one": (0, A4), "two": (1, S4), "three": (2, A4)}
TRACES = []


class Chain(nn.Module):
    """Three dense layers, each behind the one before, and the time between them."""

    @nn.compact
    def __call__(self, x, t):
        TRACES.append(t)
        h = nn.Dense(4, name="one")(x) + 0.1 * jnp.broadcast_to(t, x.shape[:1])[:, None, None, None]
        h = nn.Dense(4, name="two")(nn.silu(h))
        return nn.Dense(2, name="three")(nn.silu(h))


def params():
    rng = np.random.default_rng(1)
    sizes = {"one": (2, 4), "two": (4, 4), "three": (4, 2)}
    return {
        name: {"kernel": jnp.asarray(rng.standard_normal(size), jnp.float32), "bias": jnp.ones(size[1])}
        for name, size in sizes.items()
    }


def random_proxy(seed=0, num_steps=S):
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.1, 0.6, (C, A)).astype(np.float32)
    zero_point = rng.integers(-4, 4, (C, A)).astype(np.int32) * np.array([1, 0, 1], np.int32)
    return Proxy(rng.exponential(size=(num_steps, A, C)), scale, zero_point)


def rows_of(seed=0, steps=(0, 2, 3, 5)):
    rng = np.random.default_rng(seed)
    step = jnp.asarray(steps, jnp.int32)
    x = jnp.asarray(rng.standard_normal((len(steps), *SHAPE)), jnp.float32)
    t = 10 - 2 * step
    target = Chain().apply({"params": params()}, x, t)
    return Rows(x, t, step, target, jnp.asarray(rng.uniform(0.005, 0.015, len(steps)), jnp.float32))


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
        problem = search_problem(proxy, None)
        soft, choice = discretisation(one_hot(groups), problem.table)
        whole = proxy.cost(np.zeros(S, int))
        # Sums of S A float32 numbers.
        np.testing.assert_allclose(soft, proxy.cost(groups) / whole, rtol=1e-5)
        scale, zero_point = proxy.grids(groups, G)
        np.testing.assert_array_equal(proxy.scale[choice, np.arange(A)], scale)
        np.testing.assert_array_equal(proxy.zero_point[choice, np.arange(A)], zero_point)


def test_one_group_costs_1_and_an_empty_table_nothing():
    table = search_problem(random_proxy(), None).table
    np.testing.assert_allclose(discretisation(jnp.zeros((S, 1)), table)[0], 1.0, rtol=1e-5)
    perfect = random_proxy()._replace(table=np.zeros((S, A, C)))
    assert float(discretisation(jnp.zeros((S, G)), search_problem(perfect, None).table)[0]) == 0.0


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


# --- The relaxed network ---------------------------------------------------------------------------------------------


@functools.cache
def relaxed():
    return jax.jit(lambda problem, logits, rows: relaxed_apply(Chain(), problem, COLUMNS, logits, rows))


@functools.cache
def quantized_network():
    """Chain with these grids f32[A] and int32[A] of its activations."""

    @jax.jit
    def run(scale, zero_point, x, t):
        def visitor(name, x):
            index, scheme = COLUMNS[name]
            return fake_quantize(x, QParams(scale[index], None if scheme.symmetric else zero_point[index]), scheme)

        return apply_visited(Chain(), params(), visitor, x, t)

    return run


def test_oracle_at_a_choice_the_network_is_that_group_s_quantized_one():
    proxy, groups, rows = random_proxy(), groups_of(3), rows_of()
    found = relaxed()(search_problem(proxy, params()), one_hot(groups), rows)
    scale, zero_point = proxy.grids(groups, G)
    for row, step in enumerate(np.asarray(rows.step)):
        own = groups[step]
        alone = quantized_network()(scale[own], zero_point[own], rows.x[row : row + 1], rows.t[row])
        # Products of 2 and 4 numbers in float32; a value that two orders of summation round to different codes would
        # show as a whole step, 0.1 or more.
        np.testing.assert_allclose(found[row], alone[0], rtol=1e-5, atol=1e-5)
    assert abs(found - rows.target).max() > 0.1  # it is quantized at all


def test_memory_does_not_grow_with_the_groups_on_the_way_back():
    """Rows of 2 x 64 x 64: what is kept of them outweighs the tables."""
    problem, steps = search_problem(random_proxy(), params()), jnp.arange(4, dtype=jnp.int32)
    x = jnp.zeros((4, 64, 64, 2))
    rows = Rows(x, 10 - 2 * steps, steps, x, jnp.ones(4))

    def temporaries(num_groups):
        def task(logits):
            return jnp.sum(relaxed_apply(Chain(), problem, COLUMNS, logits, rows) ** 2)

        return jax.jit(jax.grad(task)).lower(jnp.zeros((S, num_groups))).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(16) < 1.2 * temporaries(2)


def test_sites_outside_the_plan_pass():
    problem, rows = search_problem(random_proxy(), params()), rows_of()
    float_output = relaxed_apply(Chain(), problem, {}, jnp.zeros((S, G)), rows)
    np.testing.assert_allclose(float_output, rows.target, rtol=1e-5, atol=1e-6)


def test_grad_of_the_task_reaches_the_logits_of_the_seen_steps_only_from_every_site():
    # The paper's public code rounds without a straight-through gradient: there "one" and "two" would get zero.
    # Equal spans would each choose a grid of its own, so that groups can be told apart.
    table = np.abs(np.arange(S)[:, None, None] * G // S - np.arange(C)) * np.ones((1, A, 1))
    problem, rows = search_problem(random_proxy()._replace(table=table), params()), rows_of()
    logits = 3 * initial_logits(S, G, KEY)
    np.testing.assert_array_equal(discretisation(logits, problem.table)[1], np.tile(np.arange(G)[:, None], A))

    def gradient(columns):
        def task(logits):
            return jnp.sum((rows.target - relaxed_apply(Chain(), problem, columns, logits, rows)) ** 2)

        return np.asarray(jax.jit(jax.grad(task))(logits))

    found, seen = gradient(COLUMNS), np.asarray(rows.step)
    assert (abs(found[seen]).max(axis=1) > 1e-4).all()
    for name, column in COLUMNS.items():  # each alone
        assert (abs(gradient({name: column})[seen]).max(axis=1) > 1e-4).all()
    np.testing.assert_array_equal(np.delete(found, seen, axis=0), 0.0)
    # Softmax: moving all logits of a row alike changes nothing.
    np.testing.assert_allclose(found.sum(axis=1), 0.0, atol=1e-5 * abs(found).max())


# --- The search ------------------------------------------------------------------------------------------------------


NUM_UPDATES, OPTIMIZER = 100, optax.adam(0.2)


@functools.cache
def update_of():
    return jax.jit(make_update(Chain(), COLUMNS, OPTIMIZER, NUM_UPDATES, 1.0, 0.5))


def search(problem, logits, rows_at):
    state, infos = SearchState(logits, OPTIMIZER.init(logits), jnp.zeros((), jnp.int32), jnp.ones(())), []
    for index in range(NUM_UPDATES):
        state, info = update_of()(problem, state, rows_at(index))
        infos.append(jax.device_get(info))
    return state, infos


def test_update_compiles_once_and_anneals_to_a_choice():
    # Weights that make the task's error about 1, as large as the discretisation error.
    problem, rows = blocks_problem(BLOCKS["unequal"]), [rows_of(seed, (seed, 3, 4, 5)) for seed in range(3)]
    logits = initial_logits(S, G, KEY)
    update_of.cache_clear()
    TRACES.clear()
    state, infos = search(problem, logits, lambda index: rows[index % 3])
    assert len(TRACES) == 1
    assert int(state.update) == NUM_UPDATES
    assert infos[0].entropy == mean_entropy(logits) > 0.5
    assert float(mean_entropy(state.logits)) < 0.05
    assert infos[-1].discretisation < infos[0].discretisation
    assert infos[0].task == pytest.approx(task_by_hand(problem, logits, rows[0]), rel=1e-4)


def task_by_hand(problem, logits, rows):
    error = np.float64(rows.target - relaxed()(problem, logits, rows))
    return float(np.sum(np.float64(rows.weight) * np.sum(error**2, axis=(1, 2, 3))))


BLOCKS = {
    "equal": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "unequal": [0, 0, 1, 1, 1, 1, 1, 2, 2],
    "apart": [0, 0, 1, 1, 1, 0, 2, 2, 2],
}


def blocks_problem(groups):
    """Each block is free on a candidate of its own; one more candidate is half as bad as the others for all."""
    groups = np.asarray(groups)
    groups = np.tile(groups[:, None], A)
    num_candidates = groups.max() + 2
    table = np.where(groups[..., None] == np.arange(num_candidates), 0.0, 1.0)
    table[..., -1] = 0.5
    scale = np.tile(np.linspace(0.2, 0.5, num_candidates, dtype=np.float32)[:, None], A)
    return search_problem(Proxy(table, scale, np.zeros((num_candidates, A), np.int32)), params())


def same_partition(one, two):
    return len(set(zip(one, two, strict=True))) == len(set(one)) == len(set(two))


@pytest.mark.parametrize("name", BLOCKS)
def test_the_search_finds_blocks_that_are_there(name):
    # Of the discretisation error alone: the rows weigh nothing.
    rows = rows_of()._replace(weight=jnp.zeros(4))
    state, infos = search(blocks_problem(BLOCKS[name]), initial_logits(S, G, KEY), lambda index: rows)
    assert infos[-1].task == 0.0
    assert same_partition(np.argmax(state.logits, axis=1).tolist(), BLOCKS[name])


def test_the_task_decides_where_the_table_is_silent():
    # Group 0 holds a grid of steps of 0.25, the others one of steps of 8, which rounds all activations to zero. The
    # table hardly tells them apart: only the network's output can.
    scale = np.tile(np.array([0.25, 8.0], np.float32)[:, None], A)
    table = np.zeros((S, A, 2), np.float32)
    table[0, :, 1] = table[1:3, :, 0] = 1e-6
    problem = SearchProblem(jnp.asarray(table), jnp.asarray(scale), jnp.zeros((2, A), jnp.int32), params())
    rows = rows_of(steps=(3, 4, 5, 6))
    leaning = one_hot(np.arange(S) % G) / 200
    logits = leaning.at[:G].multiply(5.0)
    np.testing.assert_array_equal(discretisation(logits, problem.table)[1], [[0] * A, [1] * A, [1] * A])
    state, infos = search(problem, logits, lambda index: rows)
    np.testing.assert_array_equal(np.argmax(state.logits[3:7], axis=1), 0)
    assert infos[-1].task < infos[0].task
