"""Which modules are blocks, in which order, and what comes in and out of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import SHAPE, ToyUNet

from jaxdq import InputError, load_denoiser
from jaxdq.linen import apply_visited, cut_into_blocks, find_sites, values_at_blocks

T = jnp.int32(3)


class Unit(nn.Module):
    """Two layers, called with more than arrays."""

    width: int = 6

    @nn.compact
    def __call__(self, x, t, *, scale=1.0, context=None):
        h = nn.Dense(self.width, name="up")(x) * scale + (0 if context is None else context)
        return x + nn.Dense(x.shape[-1], name="down")(nn.silu(h)) + jnp.cos(t)


class Stack(nn.Module):
    """Blocks in another order than their names', one in nn.remat, one that is called twice, and a layer that is not."""

    @nn.compact
    def __call__(self, x, t):
        context = nn.Dense(6, name="a_context")(x)
        x = Unit(name="z_first")(x, t, scale=2.0, context=context)
        x = nn.remat(Unit)(name="b_second")(x, t)
        twice = Unit(name="c_twice")
        return nn.Dense(x.shape[-1], name="d_out")(twice(twice(x, t), t))


class Level(nn.Module):
    @nn.compact
    def __call__(self, x, t):
        return Unit(name="unit")(nn.Dense(x.shape[-1], name="alone")(x), t)


class DownBlock(Level):
    """A container by its name."""


class Two(nn.Module):
    make: type

    @nn.compact
    def __call__(self, x, t):
        return self.make(name="level")(x, t)


def params_of(module, x):
    return module.init(jax.random.key(0), x, T)["params"]


def kernels_of(module, params, x):
    return [site.path for site in find_sites(module, params, x, T) if site.kind != "product"]


def cut(module, x, **settings):
    params = params_of(module, x)
    return cut_into_blocks(module, params, kernels_of(module, params, x), x, T, **settings)


X = jax.random.normal(jax.random.key(1), (2, *SHAPE))


def test_blocks_come_in_the_order_of_execution_and_what_is_left_is_named():
    blocks, left = cut(Stack(), X)
    assert [block.path for block in blocks] == ["a_context", "z_first", "b_second", "d_out"]
    assert blocks[1].kernels == ("z_first/up", "z_first/down")
    assert left == {path: f"'{path}' is called more than once" for path in ("c_twice/up", "c_twice/down")}


def test_layers_alone():
    blocks, left = cut(Stack(), X, max_kernels=1)
    paths = ["a_context", "z_first/up", "z_first/down", "b_second/up", "b_second/down", "d_out"]
    assert [block.path for block in blocks] == paths
    assert set(left) == {"c_twice/up", "c_twice/down"}


class TimeFirst(nn.Module):
    @nn.compact
    def __call__(self, t, x):
        return nn.Dense(x.shape[-1], name="one")(x) + nn.Dense(x.shape[-1], name="two")(x) * t


class Odd(nn.Module):
    @nn.compact
    def __call__(self, x, t):
        return nn.Dense(x.shape[-1], name="out")(TimeFirst(name="odd")(t, x))


class Sharing(nn.Module):
    """Calls a layer that belongs to the network."""

    shared: nn.Module

    @nn.compact
    def __call__(self, x):
        return x + self.shared(nn.silu(nn.Dense(2, name="own")(x)))


class WithShared(nn.Module):
    @nn.compact
    def __call__(self, x, t):
        shared = nn.Dense(2, name="shared")
        return nn.Dense(2, name="out")(Sharing(shared, name="second")(Sharing(shared, name="first")(x)))


class Taking(nn.Module):
    """Called with what is no array: a function of the time, a size, a type; returns more than arrays."""

    @nn.compact
    def __call__(self, x, fn=None, size=1, dtype=None):
        x = nn.Dense(2, name="one")(x)[..., : int(size)].astype(dtype or x.dtype)
        h = nn.Dense(2, name="two")(x if fn is None else fn(x))
        return {"h": h, "size": 2.0, "name": "taking"}


class WithTaking(nn.Module):
    given: str

    @nn.compact
    def __call__(self, x, t):
        given = {"fn": lambda z: z * jnp.cos(t), "size": np.prod((1, 2)), "dtype": np.float32}
        return nn.Dense(2, name="out")(Taking(name="taking")(x, **{self.given: given[self.given]})["h"])


class Changed(nn.Module):
    """Its bias is another on its way to the layer."""

    @nn.compact
    def __call__(self, x, t):
        def scaled(tree):
            return jax.tree_util.tree_map_with_path(lambda at, leaf: 50 * leaf if "bias" in str(at) else leaf, tree)

        mapped = nn.map_variables(nn.Dense, "params", scaled, init=self.is_initializing())
        return nn.Dense(2, name="out")(mapped(2, name="mapped")(x))


@pytest.mark.parametrize(
    ("module", "paths", "left"),
    [
        (Odd(), ["odd/one", "odd/two", "out"], {}),
        (WithShared(), ["first/own", "second/own", "out"], {"shared": "'shared' is called more than once"}),
        *((WithTaking(given), ["taking/one", "taking/two", "out"], {}) for given in ("fn", "size", "dtype")),
        (Changed(), ["out"], {"mapped": "its params are changed on their way to it"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_block_that_is_another_function_alone_is_cut_into_its_layers(module, paths, left):
    blocks, found = cut(module, X)
    assert [block.path for block in blocks] == paths and found == left
    params = params_of(module, X)
    seen = values_at_blocks(blocks, lambda: module.apply({"params": params}, X, T))
    for block, (arrays, output) in zip(blocks, seen, strict=True):
        alone = block.apply({"params": block.params_in(params)}, *arrays)
        np.testing.assert_allclose(jax.tree.leaves(alone)[0], output[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (("(",), r"blocks has '\(', which is no regular expression"),
        ("mid", "blocks is 'mid'; give a tuple of patterns of paths"),
        (("",), "blocks is .*; give a tuple"),
        (("nope.*",), "blocks has the pattern 'nope.*' and no module has such a path"),
    ],
)
def test_patterns_that_choose_nothing_are_refused(chosen, said):
    with pytest.raises(InputError, match=said):
        cut(Two(Level), X, chosen=chosen)


def test_the_network_itself_is_no_block():
    assert [block.path for block in cut(Two(Level), X, chosen=(".*",)).blocks] == ["level"]


class Scanned(nn.Module):
    """Layers that nn.scan goes through, alone and inside a block."""

    @nn.compact
    def __call__(self, x, t):
        x = Stacked(name="within")(x, t)
        return nn.Dense(x.shape[-1], name="out")(scanned(x, "alone"))


class Stacked(nn.Module):
    @nn.compact
    def __call__(self, x, t):
        return scanned(nn.Dense(x.shape[-1], name="first")(x), "rest")


def scanned(x, name):
    def step(layer, carry, _):
        return layer(carry), None

    over = nn.scan(step, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
    return over(nn.Dense(x.shape[-1], name=name), x, None)[0]


def test_kernels_that_a_scan_goes_through_go_with_the_block_around_them():
    blocks, left = cut(Scanned(), X)
    assert [(block.path, block.kernels) for block in blocks] == [
        ("within", ("within/first", "within/rest")),
        ("out", ("out",)),
    ]
    assert list(left) == ["alone"] and left["alone"].startswith("it sits in nn.scan")


@pytest.mark.parametrize(
    ("make", "settings", "paths"),
    [
        (Level, {}, ["level"]),
        (Level, {"max_kernels": 2}, ["level/alone", "level/unit"]),
        (DownBlock, {}, ["level/alone", "level/unit"]),
        (DownBlock, {"chosen": ["lev.*"]}, ["level"]),
        (Level, {"max_kernels": 1, "chosen": ["level/unit"]}, ["level/alone", "level/unit"]),
    ],
)
def test_what_is_a_block(make, settings, paths):
    assert [block.path for block in cut(Two(make), X, **settings).blocks] == paths


def test_the_bundled_model_is_cut_into_residual_blocks_and_attention():
    denoiser = load_denoiser("digits")
    x, t = jax.ShapeDtypeStruct((1, *denoiser.shape), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    sites = find_sites(denoiser.module, denoiser.params, x, t)
    kernels = [site.path for site in sites if site.kind != "product"]
    blocks, left = cut_into_blocks(denoiser.module, denoiser.params, kernels, x, t)
    assert not left and sorted(kernel for block in blocks for kernel in block.kernels) == sorted(kernels)
    assert blocks[0].path == "time_embedding" and blocks[-1].path == "conv_out"
    kinds = {type(block.module).__name__ for block in blocks}
    assert {"ResnetBlock", "Attention"} <= kinds and not any("UNet" in kind or "DownBlock" in kind for kind in kinds)


def test_oracle_a_block_alone_returns_what_it_returned_in_the_network():
    for module in (Stack(), ToyUNet()):
        params = params_of(module, X)
        blocks, _ = cut_into_blocks(module, params, kernels_of(module, params, X), X, T)
        seen = values_at_blocks(blocks, lambda module=module, params=params: module.apply({"params": params}, X, T))
        assert len(seen) == len(blocks) >= 3
        for block, (arrays, output) in zip(blocks, seen, strict=True):
            own = block.params_in(params)
            np.testing.assert_allclose(block.apply({"params": own}, *arrays), output[0], rtol=1e-5, atol=1e-5)
            names = []
            apply_visited(block, own, lambda name, x, names=names: names.append(name) or x, *arrays)
            assert {block.name_of(name) for name in names} == set(block.kernels) or block.path == ""
