"""A calibration and the network that runs: two pytrees and the pure function between them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._common.errors import InputError
from jaxdq._common.trees import unboxed
from jaxdq.grid import Grid, QTensor
from jaxdq.grid import quantize as quantize_tensor
from jaxdq.linen._acts import Acts
from jaxdq.linen._belonging import check_belongs
from jaxdq.linen._correction import Correction
from jaxdq.linen._parts import Parts, cut_codes, one_for_each_part, round_parts
from jaxdq.linen._plan import Plan, SitePlan
from jaxdq.linen._switch import Switch
from jaxdq.linen._tables import TimeTable, with_tables
from jaxdq.linen._tree import kernel_at, with_kernels, with_leaves

_CAST = ("kernel", "bias", "scale", "embedding")  # names that flax's layers have
_FLOATS = ("bfloat16", "float16", "float32")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Calibration:
    """All decisions about one network: a small pytree, independent of the sampler.

    Attributes:
        weights: Path of a site -> the grid that its kernel is rounded to, scales broadcastable to the kernel; or the
            kernel's codes themselves (a `QTensor`), where a method chose them otherwise than by rounding to nearest.
            Where the plan cuts the kernel, scales change with the part along the input channels (`fit_in_parts`); or
            it is `Parts` of either, which may have a scale for each input channel and a low-rank branch.
        acts: Grids of the activations by time group; None until a calibrator has fitted them.
        plan: Which site runs on which integers (static).
        variables: The network's collections other than params, which every call needs.
        params: Path of a leaf, `a/b/bias` -> the array that takes its place: corrected biases, fine-tuned leaves.
        tables: Path of a module that sees nothing but the time -> what it returns at a sampler's times; the module
            and its params are gone.
        correction: Correction of the network's ends, by model time.
        instead: Another calibration that runs at some times; None where this one always runs.
    """

    weights: Mapping[str, Grid | QTensor | Parts]
    acts: Acts | None
    plan: Plan = dataclasses.field(metadata={"static": True})
    variables: Any = dataclasses.field(default_factory=dict)
    params: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
    tables: Mapping[str, TimeTable] = dataclasses.field(default_factory=dict)
    correction: Correction | None = None
    instead: "Instead | None" = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Instead:
    """What runs in place of a calibration at some times.

    Attributes:
        calib: Calibration of the same network; `OtherActs`, if its weights are the same; None is the float network.
        at: bool[T], the model times at which it runs.
    """

    calib: "Calibration | OtherActs | None"
    at: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OtherActs:
    """A calibration with other activations and all else, weights and codes above all, as the one it stands in for.

    Attributes:
        acts: Grids of its activations.
        plan: Its plan, which differs in nothing else (static).
        correction: Its correction.
    """

    acts: Acts | None
    plan: Plan = dataclasses.field(metadata={"static": True})
    correction: Correction | None = None

    def of(self, calib: Calibration) -> Calibration:
        """The whole calibration."""
        return dataclasses.replace(calib, acts=self.acts, plan=self.plan, correction=self.correction, instead=None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedParams:
    """The network that runs and is saved: params with `QTensor` in place of float kernels, and the activations' grids.

    Attributes:
        params: The network's params; the kernel of a quantized site is a `QTensor`, its float kernel is gone.
        acts: Grids of the activations by time group; its columns are the plan's.
        plan: Which site runs on which integers (static).
        variables: The network's collections other than params, as in `Calibration`.
        correction: Correction of the network's ends, by model time, as in `Calibration`.
    """

    params: Any
    acts: Acts
    plan: Plan = dataclasses.field(metadata={"static": True})
    variables: Any = dataclasses.field(default_factory=dict)
    correction: Correction | None = None


def quantize(params: Any, calib: Calibration, *, dtype: jax.typing.DTypeLike | None = None) -> Any:
    """Puts the kernels of all planned sites on their grids. Pure and jittable.

    Each kernel becomes `QTensor` by `qvalue = clip(round_half_even(w / scale) + zero_point, lo, hi)` with the scales of
    the calibration, unless the calibration brings the codes; leaves that it replaces are replaced. Biases of integer
    sites become float32, in which they are added, so that no call converts them; all other parameters pass through
    untouched, or into `dtype`.

    Args:
        params: The float params that were calibrated, nested dict.
        calib: Result of `jaxdq.calibrate`.
        dtype: Dtype of what stays in float and of activations between the sites: bfloat16 is half the memory traffic of
            float32, and what a TPU is fast in. Then `jaxdq.apply` casts images and sequences to it, and the output back
            to what came; layers with a dtype of their own keep theirs. None leaves it to the params.

    Returns:
        QuantizedParams; a `Switch` of two networks where the calibration has another one for some times.

    Raises:
        InputError: Params that are not the calibrated network's: arrays are missing, superfluous, of other shapes or
            integers; or (outside jit, where one can look) hold NaN, infinity or, where they stay in float, other
            numbers; a dtype that is no float of 16 or 32 bits; a calibration that is not whole, or whose grids were
            fitted for another plan.

    Example:
        `qparams = jax.jit(jaxdq.quantize, static_argnames="dtype")(denoiser.params, calib, dtype="bfloat16")`
    """
    if not isinstance(calib, Calibration):
        raise InputError(f"calib is {type(calib).__name__}; pass what jaxdq.calibrate returned.")
    check_dtype(dtype)
    if not isinstance(params, Mapping):
        raise InputError(f"params is a {type(params).__name__}; pass the float params that were calibrated.")
    params = unboxed(params)
    if calib.instead is not None:
        _check_instead(calib)
        own, other = dataclasses.replace(calib, instead=None), calib.instead.calib
        first = quantize(params, own, dtype=dtype)
        if other is None:
            second = params
        else:
            other = other.of(own) if isinstance(other, OtherActs) else other
            second = quantize(params, other, dtype=dtype)
            second = dataclasses.replace(second, params=_sharing(first, second, own, other))
        return Switch((first, second), jnp.asarray(calib.instead.at).astype(jnp.int32))
    plan = calib.plan.with_tables(calib.tables)
    plan = plan if dtype is None else plan.computing_in(dtype)
    if calib.acts is None:
        raise InputError(
            "the calibration has no grids for activations yet; end the recipe with a calibrator that fits them, such "
            "as share_uniformly(1)."
        )
    calib.acts.check()
    if calib.correction is not None:
        if not isinstance(calib.correction, Correction):
            raise InputError(f"the calibration's correction is a {type(calib.correction).__name__}; give a Correction.")
        calib.correction.check(calib.acts.group_of_t.shape[0])
    check_belongs(params, calib.plan, "params", "pass the float params that were calibrated, or calibrate these")
    params, quantized = with_leaves(params, calib.params), {}
    for site in plan.sites:
        if site.weight is not None:
            quantized[site.path] = _quantize_kernel(params, site, calib.weights.get(site.path))
    params = with_tables(with_kernels(_cast(params, plan), quantized), calib.tables)
    acts, plan = calib.acts.select(plan.columns), plan.without_digests(calib.params.keys())
    return QuantizedParams(params, acts, plan, calib.variables, calib.correction)


def _sharing(first: QuantizedParams, second: QuantizedParams, own: Calibration, other: Calibration) -> Any:
    """The second network's params, with the very arrays of the first where the calibrations decide the same."""
    moved = {path for path in {**own.params, **other.params} if own.params.get(path) is not other.params.get(path)}

    def is_same(path: str) -> bool:
        site, site_too = (network.plan.by_path.get(path) for network in (first, second))
        if site is None or site_too is None or (site.weight, site.parts) != (site_too.weight, site_too.parts):
            return False
        decided, decided_too = (calib.weights.get(path) for calib in (own, other))
        return f"{path}/kernel" not in moved and (site.weight is None or decided is decided_too)

    def walk(mine: Any, theirs: Any, path: str) -> Any:
        if isinstance(theirs, QTensor | Parts):
            return mine if is_same(path.rpartition("/")[0]) else theirs
        if isinstance(theirs, TimeTable):
            tables = (calib.tables.get(path.rpartition("/")[0]) for calib in (own, other))
            return mine if next(tables) is next(tables) else theirs
        if hasattr(theirs, "items"):
            return {
                key: walk(mine[key], node, f"{path}/{key}".lstrip("/")) if key in mine else node
                for key, node in theirs.items()
            }
        alike = hasattr(mine, "dtype") and mine.dtype == theirs.dtype and path not in moved
        return mine if alike else theirs

    return walk(first.params, second.params, "")


def _check_instead(calib: Calibration) -> None:
    """Refuses another network whose times are not those of this one."""
    instead = calib.instead
    if not isinstance(instead, Instead):
        raise InputError(f"the calibration's instead is a {type(instead).__name__}; give an Instead, or None.")
    shape, dtype = getattr(instead.at, "shape", None), getattr(instead.at, "dtype", type(instead.at).__name__)
    if calib.acts is not None and (shape != calib.acts.group_of_t.shape or not jnp.issubdtype(dtype, jnp.bool_)):
        came = f"of type {dtype}" if shape is None else f"of shape {shape} and type {dtype}"
        raise InputError(
            f"the times of the other network (Instead.at) are {came}; give an array of "
            f"{calib.acts.group_of_t.shape[0]} truth values, one for each timestep."
        )
    other = None if instead.calib is None else instead.calib.acts
    if calib.acts is not None and other is not None and other.group_of_t.shape != calib.acts.group_of_t.shape:
        raise InputError(
            f"the other network (Instead.calib) has {other.group_of_t.shape[0]} timesteps and this one "
            f"{calib.acts.group_of_t.shape[0]}; calibrate both on one schedule."
        )


def check_dtype(dtype: jax.typing.DTypeLike | None) -> None:
    """Refuses what is no float of 16 or 32 bits; None is what the params have."""
    try:
        known = dtype is None or jnp.dtype(dtype).name in _FLOATS
    except (TypeError, ValueError):
        known = False
    if not known:
        raise InputError(f"dtype is {dtype!r}; give {', '.join(_FLOATS)}, or None for what the params have.")


def _cast(params: Any, plan: Plan) -> Any:
    """Biases of integer sites in float32, and all else that flax's own layers take in the plan's dtype, if it has one.

    Other params may be frequencies, say.
    """

    def walk(node: Any, path: str) -> Any:
        if hasattr(node, "items"):
            return {key: walk(value, f"{path}/{key}" if path else key) for key, value in node.items()}
        module, _, name = path.rpartition("/")
        site = plan.by_path.get(module)
        is_own = name in _CAST and hasattr(node, "dtype") and jnp.issubdtype(node.dtype, jnp.floating)
        wanted = plan.dtype
        if site is not None and site.is_integer:
            wanted = "float32" if name == "bias" else ""
        return node.astype(wanted) if is_own and wanted else node

    return walk(params, "")


def _quantize_kernel(params: Any, site: SitePlan, decided: Grid | QTensor | Parts | None) -> QTensor | Parts:
    assert site.weight is not None
    if isinstance(decided, Parts):
        parts = round_parts(kernel_at(params, site.path), decided, site.parts, site.input_axis, site.weight)
        return _with_code_sums(site, parts)
    if decided is None or decided.scheme != site.weight:
        came = "none was fitted" if decided is None else f"the one at hand was fitted for {decided.scheme}"
        raise InputError(
            f"the plan puts the kernel of '{site.path}' on a grid of {site.weight} bits and {came}; fit the weights "
            f"again after the plan has changed."
        )
    if isinstance(decided, Grid):
        decided = quantize_tensor(kernel_at(params, site.path), decided.qparams, site.weight)
    if decided.shape != site.site.shape:
        raise InputError(
            f"the codes given for '{site.path}' have shape {decided.shape} and its kernel {site.site.shape}; pass one "
            f"code for each weight."
        )
    if not site.parts:
        return site.with_code_sum(decided)
    for leaf in jax.tree.leaves(decided.qparams):
        _check_parts(leaf, site)
    return _with_code_sums(site, cut_codes(decided, site.parts, site.input_axis))


def _with_code_sums(site: SitePlan, parts: Parts) -> Parts:
    codes = tuple(site.with_code_sum(part) for part in parts.parts if isinstance(part, QTensor))
    return dataclasses.replace(parts, parts=codes)


def _check_parts(leaf: jax.Array, site: SitePlan) -> None:
    """Refuses scales or zero points that are not one for each part."""
    axis = site.input_axis
    has_channels = leaf.ndim > axis and leaf.shape[axis] == sum(site.parts)
    if has_channels and not isinstance(leaf, jax.core.Tracer):
        each = np.repeat(one_for_each_part(np.asarray(leaf), site.parts, axis), site.parts, axis)
        has_channels = np.array_equal(each, leaf, equal_nan=True)
    if not has_channels:
        raise InputError(
            f"the plan cuts the kernel of '{site.path}' into parts of {site.parts} input channels and the "
            f"calibration has not one scale for each; fit the weights again after the plan has changed."
        )
