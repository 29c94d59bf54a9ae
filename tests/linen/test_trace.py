import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import toy_calibration, toy_params, toy_plan

from jaxdq.grid import QParams, QTensor, Scheme, fake_quantize
from jaxdq.linen import Rule, apply, apply_visited, dequantize_params, quantize

T0 = np.int32(0)
X = np.random.default_rng(0).uniform(-0.5, 2.0, (3, 6, 4)).astype(np.float32)
A8 = Scheme(8, symmetric=False)
RULES = [Rule(".*", Scheme(8, channel_axis=-1), A8)]


def check_against_twin(module, *args, expected):
    """Every site runs as expected ("integer" or words of its reason), and the whole equals its float twin.

    The twin has every kernel and every input of an integer site on its grid, and computes in float: what is left are
    sums of a few products, rounded in another order.
    """
    params = toy_params(module, *args)
    plan = toy_plan(module, params, RULES, *args)
    runs = {row[0]: row[5] for row in plan.rows()}
    assert {path: expected[path] in how for path, how in runs.items() if path in expected} == dict.fromkeys(
        expected, True
    ), runs
    calib = toy_calibration(module, params, plan, [0], *args)

    @jax.jit
    def both(calib):
        qparams = quantize(params, calib)

        def visitor(name, x):
            if name not in plan.activations:
                return x
            column, scheme = plan.activations[name]
            return fake_quantize(x, QParams(calib.acts.scale[0, column], calib.acts.zero_point[0, column]), scheme)

        twin = apply_visited(module, dequantize_params(qparams), visitor, *args)
        return apply(module, qparams, *args), twin, apply(module, params, *args), qparams

    integer, twin, exact, qparams = both(calib)
    np.testing.assert_allclose(integer, twin, rtol=2e-5, atol=2e-5 * float(abs(twin).max()))
    assert abs(integer - exact).max() < 0.06 * abs(exact).max()
    return plan, qparams


class Block(nn.Module):
    """A convolution, a dense layer and a bias between them; what is lifted below."""

    @nn.compact
    def __call__(self, x):
        h = nn.Conv(4, (3,), padding="same", name="conv")(x)
        return x + nn.Dense(4, name="dense")(nn.silu(h)) * self.param("gain", nn.initializers.ones, (4,))


class Decorated(nn.Module):
    @nn.remat
    @nn.compact
    def __call__(self, x):
        return Block(name="inner")(x)


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return Block(name="inner")(x), None


class Early(nn.Module):
    """Layers that are made in setup."""

    def setup(self):
        self.blocks = [nn.remat(Block)() for _ in range(2)]

    def __call__(self, x):
        return self.blocks[1](self.blocks[0](x))


STACKED = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": 3}
SHARED = {"variable_broadcast": "params", "split_rngs": {"params": False}, "length": 2}
LIFTED = {
    "remat": (lambda x: nn.remat(Block)(name="inner")(x), "inner"),
    "checkpoint, with a policy": (
        lambda x: nn.checkpoint(Block, policy=jax.checkpoint_policies.everything_saveable)(name="inner")(x),
        "inner",
    ),
    "remat as a decorator": (lambda x: Decorated(name="outer")(x), "outer/inner"),
    "remat in setup": (lambda x: Early(name="outer")(x), "outer/blocks_1"),
    "remat of one that is called outside too": (
        lambda x: (lambda block: nn.remat(lambda block, x: block(x))(block, block(x)))(Block(name="inner")),
        "inner",
    ),
    "remat within remat": (lambda x: nn.remat(Decorated)(name="outer")(x), "outer/inner"),
    "remat of a function": (lambda x: nn.remat(lambda block, x: block(x))(Block(name="inner"), x), "inner"),
    "scan, shared": (lambda x: nn.scan(Step, **SHARED)(name="outer")(x, None)[0], "outer/inner"),
    "scan, stacked": (lambda x: nn.scan(Step, **STACKED)(name="outer")(x, None)[0], "outer/inner"),
    "scan along the last axis": (
        lambda x: nn.scan(Step, **STACKED | {"variable_axes": {"params": -1}})(name="outer")(x, None)[0],
        "outer/inner",
    ),
    "scan of scan, along the second axis": (
        lambda x: nn.scan(
            nn.scan(Step, **STACKED | {"variable_axes": {"params": 1}}), **STACKED | {"variable_axes": {"params": 1}}
        )(name="outer")(x, None)[0],
        "outer/inner",
    ),
    "scan, in reverse": (lambda x: nn.scan(Step, reverse=True, **STACKED)(name="outer")(x, None)[0], "outer/inner"),
    "scan of remat": (lambda x: nn.scan(nn.remat(Step), **STACKED)(name="outer")(x, None)[0], "outer/inner"),
    "remat_scan": (lambda x: nn.remat_scan(Block, lengths=(2, 2))(name="inner")(x), "inner"),
    "scan of a function": (
        lambda x: nn.scan(lambda block, x, _: (block(x), None), **STACKED)(Block(name="inner"), x, None)[0],
        "inner",
    ),
    "remat of scan": (
        lambda x: nn.remat(nn.scan(Step, **STACKED))(name="outer")(x, None)[0],
        "outer/inner",
    ),
}


class Net(nn.Module):
    how: str

    @nn.compact
    def __call__(self, x, t):
        return nn.Dense(4, name="last")(LIFTED[self.how][0](x) + jnp.cos(0.1 * t))


# Others are made of these: in CI.
SLOW = {"scan along the last axis", "scan, in reverse", "scan of remat", "scan of a function", "remat of scan"}


@pytest.mark.parametrize("how", [pytest.param(how, marks=[pytest.mark.slow] * (how in SLOW)) for how in LIFTED])
def test_oracle_layers_in_remat_and_scan_run_on_integers(how):
    inner = LIFTED[how][1]
    expected = {f"{inner}/conv": "integer", f"{inner}/dense": "integer", "last": "integer"}
    plan, qparams = check_against_twin(Net(how), X, T0, expected=expected)
    assert plan.integer_mac_fraction == 1
    node = functools.reduce(lambda tree, name: tree[name], inner.split("/"), qparams.params)
    assert isinstance(node["dense"]["kernel"], QTensor)


def test_oracle_a_network_that_is_remat_itself_runs_on_integers():
    module = nn.remat(Net)("remat")
    plan, _ = check_against_twin(module, X, T0, expected={"inner/conv": "integer", "last": "integer"})
    assert plan.integer_mac_fraction == 1


def test_macs_count_every_step_of_a_scan():
    macs = {}
    for how in ("remat", "scan, shared", "scan, stacked"):
        plan = toy_plan(Net(how), toy_params(Net(how), X, T0), RULES, X, T0)
        macs[how] = plan.by_path[f"{LIFTED[how][1]}/dense"].site.macs
    assert macs == {"remat": 6 * 16, "scan, shared": 2 * 6 * 16, "scan, stacked": 3 * 6 * 16}


class Branch(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.cond(x.sum() > 0, lambda mdl, x: mdl(x), lambda mdl, x: 2 * mdl(x), Block(name="inner"), x)


class Slope(nn.Module):
    """A score that is the gradient of an energy: integers have none."""

    @nn.compact
    def __call__(self, x):
        block = Block(name="inner")
        block(x[:1])  # makes its params, outside of the gradient
        return nn.vjp(lambda mdl, x: mdl(x).sum(), block, x)[1](1.0)[1]


UNREACHED = {
    "jit": lambda x: nn.jit(Block)(name="inner")(x),
    "vmap": lambda x: nn.vmap(Block, variable_axes={"params": None}, split_rngs={"params": False})(name="inner")(
        x[:, None]
    )[:, 0],
    "vmap, stacked": lambda x: nn.vmap(Block, variable_axes={"params": 0}, split_rngs={"params": True}, axis_size=3)(
        name="inner"
    )(x[:, None])[:, 0],
    "cond": lambda x: Branch(name="outer")(x),
    "vjp": lambda x: Slope(name="outer")(x),
}


class Unreached(nn.Module):
    how: str

    @nn.compact
    def __call__(self, x, t):
        return nn.Dense(4, name="last")(UNREACHED[self.how](x))


@pytest.mark.parametrize("how", UNREACHED)
def test_layers_in_other_transformations_compute_in_float_and_the_rest_on_integers(how):
    module = Unreached(how)
    plan, _ = check_against_twin(module, X, T0, expected={"last": "integer"})
    inner = [site for site in plan.sites if "inner" in site.path]
    assert len(inner) == 2 and not any(site.is_integer for site in inner)
    assert all(site.reason for site in inner) and 0 < plan.integer_mac_fraction < 1
    weights = {site.weight is not None for site in inner}
    assert weights == {how != "vjp"}, [site.reason for site in inner]


def scaled(variables):
    return jax.tree.map(lambda leaf: 0.5 * leaf, variables)


def only_biases(variables):
    return jax.tree_util.tree_map_with_path(lambda path, x: 2 * x if path[-1].key == "bias" else x, variables)


def unit_length(variables):
    return jax.tree.map(lambda leaf: leaf / jnp.linalg.norm(leaf), variables)


class Changed(nn.Module):
    """Layers whose params something changes on the way to them, within `nn.remat` too, and one that keeps its own."""

    @nn.compact
    def __call__(self, x, t):
        changed = functools.partial(nn.map_variables, mapped_collections="params", init=self.is_initializing())
        h = changed(nn.Conv, trans_in_fn=scaled)(4, (3,), name="halved")(x)
        h = changed(nn.remat(nn.Dense), trans_in_fn=unit_length)(4, name="normed")(h)
        h = nn.remat(changed(Block, trans_in_fn=scaled))(name="block")(h)
        h = nn.WeightNorm(nn.Dense(4, name="weight"), name="norm")(h)
        h = changed(nn.Dense, trans_in_fn=lambda vs: jax.tree.map(lambda x: x.astype("bfloat16"), vs))(4, name="cast")(
            h
        )
        return nn.Dense(4, name="kept")(h.astype(jnp.float32))


def test_layers_whose_kernel_is_made_of_params_on_the_way_stay_in_float_by_name():
    on_the_way = "float: its kernel is computed on the way from params"
    names = ("halved", "normed", "block/conv", "block/dense", "weight")
    expected = {**dict.fromkeys(names, on_the_way), "cast": "takes no integer codes", "kept": "integer"}
    check_against_twin(Changed(), X, T0, expected=expected)


class OwnKernel(nn.Module):
    """As a published diffusion UNet does: a convolution called as a function of a kernel that the host standardized.

    The functional layers have no path, or one that a layer of the host has too.
    """

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 4, 4))
        kernel = (kernel - kernel.mean((0, 1))) / (kernel.std((0, 1)) * 12**0.5)
        h = nn.Conv(4, (3,), use_bias=False, parent=None).apply({"params": {"kernel": kernel}}, x)
        same = {"conv": {"kernel": kernel, "bias": jnp.ones(4)}, "dense": {"kernel": kernel[0], "bias": jnp.ones(4)}}
        return Block(parent=None).apply({"params": {**same, "gain": jnp.ones(4)}}, h)


class Host(nn.Module):
    @nn.compact
    def __call__(self, x, t):
        h = nn.Conv(4, (3,), name="conv")(OwnKernel(name="own")(x))
        return nn.Dense(4, name="dense")(h)


def test_functional_layers_stay_in_float_and_the_rest_runs_on_integers():
    plan, qparams = check_against_twin(Host(), X, T0, expected={"conv": "integer", "dense": "integer"})
    assert {path for path, _, _ in plan.unplanned} == {"own/kernel"}
    # Two convolutions of three taps and a dense layer as functions, one convolution and one dense layer as sites.
    assert plan.integer_mac_fraction == (3 + 1) / (3 + 3 + 1 + 3 + 1)
    assert not isinstance(qparams.params["own"]["kernel"], QTensor)


class Reader(nn.Module):
    """Kernels that are read outside their layers, in several ways, and one whose shape alone is."""

    @nn.compact
    def __call__(self, x, t):
        encoder = nn.Dense(4, name="tied")
        h = encoder(x) @ encoder.variables["params"]["kernel"].T
        watched = nn.Dense(4, name="watched")
        h = watched(h)
        self.sow("intermediates", "norm", jnp.linalg.norm(watched.get_variable("params", "kernel")))
        lent = nn.Dense(4, name="lent")
        h = lent(h)
        h = nn.Dense(4, parent=None).apply({"params": lent.variables["params"]}, h)
        in_remat = nn.Dense(4, name="in_remat")
        h = nn.remat(lambda layer, x: (layer(x), layer.variables["params"]["kernel"].mean())[0])(in_remat, h)
        asked = nn.Dense(4, name="asked")
        h = asked(h).astype(asked.variables["params"]["kernel"].dtype)  # codes have none
        measured = nn.Dense(4, name="measured")
        return measured(h) / measured.variables["params"]["kernel"].shape[0]


def test_kernels_that_are_read_outside_their_layers_stay_in_float_by_name():
    names = ("tied", "watched", "lent", "in_remat")
    outside = "float: its kernel is also read outside the layer"
    check_against_twin(
        Reader(),
        X,
        T0,
        expected={**dict.fromkeys(names, outside), "asked": "takes no integer codes", "measured": "integer"},
    )


class Spectral(nn.Module):
    """A layer of the frequencies of an image, as in neural operators."""

    @nn.compact
    def __call__(self, x, t):
        h = jnp.fft.ifft2(nn.Dense(4, name="spectral")(jnp.fft.fft2(x, axes=(1, 2))), axes=(1, 2)).real
        return nn.Dense(4, name="real")(nn.silu(h))


@pytest.mark.parametrize("kernel", [jnp.float32, jnp.complex64], ids=str)
def test_layers_that_compute_with_complex_numbers_stay_in_float_by_name(kernel):
    x = jnp.ones((2, 4, 4, 3))
    params = toy_params(Spectral(), x, T0)
    params["spectral"]["kernel"] = params["spectral"]["kernel"].astype(kernel)
    plan = toy_plan(Spectral(), params, RULES, x, T0)
    assert plan.by_path["spectral"].reason == "it computes with complex numbers" and plan.by_path["real"].is_integer
