"""Small networks that many tests share: a UNet with one of everything, and a layer whose answers are known."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdq.calibration import Calibrator, Judge, Machine, Problem, Work
from jaxdq.diffusion import Denoiser, linear_schedule
from jaxdq.grid import Grid, Scheme
from jaxdq.linen import (
    Acts,
    Calibration,
    Einsum,
    Plan,
    QuantizedParams,
    Rule,
    apply_visited,
    find_sites,
    kernel_at,
    make_plan,
    quantize,
)
from jaxdq.observers import minmax, minmax_weights

SHAPE = (8, 8, 2)
# The smallest UNet2DModel of diffusers, for folders.
UNET2D_CONFIG = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D"],
    "mid_block_type": None,
    "up_block_types": ["UpBlock2D"],
    "norm_num_groups": 2,
    "attention_head_dim": None,
}
NUM_TIMESTEPS = 20


class ToyUNet(nn.Module):
    """conv, strided conv, dense, group norm, attention, a skip and a time embedding, on images of even size."""

    features: int = 8
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, label: jax.Array | None = None) -> jax.Array:
        wide, kwargs = 2 * self.features, {"dtype": self.dtype}
        angle = jnp.broadcast_to(t, x.shape[:1])[:, None] * 2.0 ** -jnp.arange(4)
        time = nn.silu(
            nn.Dense(self.features, name="time", **kwargs)(jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], 1))
        )
        if label is not None:
            time = time + label
        shift = nn.Dense(wide, name="shift", **kwargs)(nn.silu(time))[:, None, None]
        h = skip = nn.Conv(self.features, (3, 3), name="conv_in", **kwargs)(x)
        h = nn.Conv(wide, (3, 3), 2, name="down", **kwargs)(h) + shift
        h = nn.silu(nn.GroupNorm(4, name="norm", **kwargs)(h))
        tokens = h.reshape(h.shape[0], -1, wide)
        query, keys, values = (nn.Dense(wide, name=name, **kwargs)(tokens) for name in ("query", "key", "value"))
        weights = nn.softmax(Einsum("bqd,bkd->bqk", name="scores")(query / wide**0.5, keys))
        mixed = nn.Dense(wide, name="out", **kwargs)(Einsum("bqk,bkd->bqd", name="mix")(weights, values))
        h = jnp.repeat(jnp.repeat(h + mixed.reshape(h.shape), 2, 1), 2, 2)
        h = nn.silu(nn.Conv(self.features, (3, 3), name="up", **kwargs)(jnp.concatenate([h, skip], -1)))
        return nn.Conv(x.shape[-1], (3, 3), name="conv_out", **kwargs)(h)


class Line(nn.Module):
    """Four dense layers, both ends and two integer sites between them, and one that sees the time alone."""

    @nn.compact
    def __call__(self, x, t):
        time = nn.Dense(4, name="time")(jnp.cos(0.3 * jnp.broadcast_to(t, x.shape[:1]))[:, None])
        h = nn.silu(nn.Dense(4, name="in")(x) + time[:, None, None])
        for name in ("one", "two"):
            h = nn.silu(nn.Dense(4, name=name)(h))
        return nn.Dense(x.shape[-1], name="out")(h)


class Tiny(nn.Module):
    """The least that recipes tell apart: both ends, a convolution and a dense layer between them, and a time path."""

    features: int = 8

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, label: jax.Array | None = None) -> jax.Array:
        time = jnp.cos(jnp.broadcast_to(t, x.shape[:1])[:, None] * 2.0 ** -jnp.arange(4))
        shift = nn.Dense(self.features, name="time")(time if label is None else time + label)
        h = nn.Conv(self.features, (1, 1), name="conv_in")(x) + shift[:, None, None]
        h = nn.Conv(self.features, (3, 3), name="conv")(nn.silu(h))
        h = nn.Dense(self.features, name="dense")(nn.silu(h))
        return nn.Dense(x.shape[-1], name="conv_out")(nn.silu(h))


class Known(nn.Module):
    """`y = x @ kernel`, with kernel and inputs that lie on 8-bit grids: the integer path has no rounding to do."""

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        return nn.Dense(2, name="dense")(x)


KNOWN_PARAMS = {"dense": {"kernel": jnp.array([[127.0, -1.0], [2.0, 127.0]]) / 4, "bias": jnp.array([0.5, -1.0])}}
KNOWN_X = jnp.array([[127.0, -3.0], [0.0, 64.0]]) / 8
# [127 * 127 - 3 * 2, -127 - 3 * 127; 64 * 2, 64 * 127] / 32 + bias, by hand.
KNOWN_Y = np.array([[16123.0, -508.0], [128.0, 8128.0]]) / 32 + np.array([0.5, -1.0])


def toy_params(module: nn.Module, *args: Any) -> Any:
    """Random parameters, always the same; made by numpy, since flax would compile each layer's initializer."""
    rng = np.random.default_rng(7)

    def fill(path: Any, leaf: Any) -> jax.Array:
        fan_in = int(np.prod(leaf.shape[:-1])) if path[-1].key == "kernel" else 100
        values = rng.standard_normal(leaf.shape) / np.sqrt(fan_in)
        return jnp.asarray(values + (path[-1].key == "scale"), leaf.dtype)

    init = jax.eval_shape(lambda: module.init(jax.random.key(0), *args)["params"])
    return jax.tree_util.tree_map_with_path(fill, init)


def toy_denoiser(module: nn.Module | None = None, conditions: tuple[Any, ...] = ()) -> Denoiser:
    """A denoiser of random weights, whose outputs are about as large as the noise that they stand for."""
    module = ToyUNet() if module is None else module
    rows = [jnp.asarray(rows)[:1] for rows in conditions]
    params = toy_params(module, jnp.zeros((1, *SHAPE)), jnp.zeros((), jnp.int32), *rows)
    return Denoiser(module, params, linear_schedule(NUM_TIMESTEPS, 0.01, 0.3), SHAPE, conditions, "toy")


@functools.cache
def tiny_quantized() -> tuple[Denoiser, QuantizedParams]:
    """A small denoiser, and its quantized parameters in two groups: ranges of one call, for tests of what follows."""
    denoiser = toy_denoiser(Tiny())
    x, t = np.random.default_rng(3).standard_normal((4, *SHAPE)).astype(np.float32), np.int32(0)
    w8, a8 = Scheme(8, channel_axis=-1), Scheme(8, symmetric=False)
    rules = [Rule("time", w8), Rule("conv_(in|out)"), Rule(".*", w8, a8)]
    plan = toy_plan(denoiser.module, denoiser.params, rules, x, t)
    group_of_t = np.arange(NUM_TIMESTEPS) // 10
    calib = toy_calibration(denoiser.module, denoiser.params, plan, group_of_t, x, t, num_groups=2)
    return denoiser, jax.jit(quantize)(denoiser.params, calib)


def toy_plan(module: nn.Module, params: Any, rules: list[Rule], *args: Any) -> Plan:
    return make_plan(rules, find_sites(module, params, *args), params)


def toy_calibration(
    module: nn.Module, params: Any, plan: Plan, group_of_t: Any, *args: Any, num_groups: int = 1, **kwargs: Any
) -> Calibration:
    """Min-max ranges of this one call; group g's are `1 + g / 4` times as wide, so that groups can be told apart."""
    observer = minmax()

    @jax.jit
    def grids(args: Any, kwargs: Any) -> tuple[jax.Array, jax.Array]:
        seen = {}

        def visitor(name: str, x: jax.Array) -> jax.Array:
            if name in plan.activations:
                seen[name] = observer.update(seen.get(name, observer.init()), x)
            return x

        apply_visited(module, params, visitor, *args, **kwargs)
        found = [observer.qparams(seen[name], scheme) for name, scheme in plan.columns]
        zero_points = [jnp.int32(0) if grid.zero_point is None else grid.zero_point for grid in found]
        return jnp.array([grid.scale for grid in found]), jnp.array(zero_points, jnp.int32)

    @jax.jit
    def weights() -> dict[str, Grid]:
        sites = [site for site in plan.sites if site.weight is not None]
        grids = {site.path: minmax_weights()(kernel_at(params, site.path), site.weight) for site in sites}
        return {site.path: Grid(grids[site.path], site.weight) for site in sites}

    scale, zero_point = map(np.asarray, grids(args, kwargs))
    wider = 1 + np.arange(num_groups, dtype=np.float32)[:, None] / 4
    tables = wider * scale, np.tile(zero_point, (num_groups, 1)), np.asarray(group_of_t, np.int32)
    return Calibration(weights(), Acts(*map(jnp.asarray, tables), plan.columns), plan)


def toy_work(denoiser: Denoiser, sampler: Any, plan: Plan, data: Any, *facts: Any, batch_size: int = 32) -> Work:
    """Work that knows these facts and has decided nothing but its plan."""
    problem = Problem(denoiser, sampler, data, Judge(jax.random.key(0), lambda key: data.images))
    calib = Calibration(weights={}, acts=None, plan=plan, variables=denoiser.variables)
    return Work(problem, Machine(batch_size), {type(fact): fact for fact in facts}, calib)


def given(name: str, *kinds: type, run: Any = lambda work, key: work) -> Calibrator:
    """A calibrator that says it gives these kinds."""
    return Calibrator(name, run, gives=kinds)


class Told(nn.Module):
    """Attention of the images to a text, the least of it: keys and values are made of the text alone."""

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
        h = nn.Dense(4, name="in")(x) * (1 + 0.1 * t)
        q = nn.Dense(4, name="q")(h)
        k, v = (nn.Dense(4, name=name)(text) for name in "kv")
        shares = nn.softmax(jnp.einsum("bhwc,bnc->bhwn", q, k))
        return nn.Dense(x.shape[-1], name="out")(h + jnp.einsum("bhwn,bnc->bhwc", shares, v))
