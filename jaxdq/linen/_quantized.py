"""What calibration learned, and what runs: two pytrees and the pure function between them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdq._errors import InputError
from jaxdq.grid import QParams, QTensor
from jaxdq.grid import quantize as quantize_tensor
from jaxdq.linen._plan import Plan, SitePlan
from jaxdq.linen._tree import kernel_at, with_kernels

_CAST = ("kernel", "bias", "scale", "embedding")  # names that flax's layers have
_FLOATS = ("bfloat16", "float16", "float32")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Calibration:
    """All that was learned of one network: small, a pytree, independent of the sampler.

    G is the number of groups, A that of arrays that are quantized (the columns `plan.tables`).

    Attributes:
        weights: path -> QParams of the kernel, scales broadcastable to it.
        act_scale: f32[G, A].
        act_zero_point: int32[G, A]; 0 where the scheme is symmetric.
        group_of_t: int32[T], the group of every model time; or int32[T, A], a partition for each activation.
        plan: which site runs on which integers (static).
        variables: the network's collections other than params, which every call needs.
    """

    weights: dict[str, QParams]
    act_scale: jax.Array
    act_zero_point: jax.Array
    group_of_t: jax.Array
    plan: Plan = dataclasses.field(metadata={"static": True})
    variables: Any = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedParams:
    """What runs and is saved: the params tree with `QTensor` in place of float kernels, and the tables of scales.

    Attributes:
        params: the network's params; the kernel of a quantized site is a `QTensor`, its float kernel is gone.
        act_scale: f32[G, A], as in `Calibration`.
        act_zero_point: int32[G, A].
        group_of_t: int32[T] or int32[T, A].
        plan: which site runs on which integers (static).
        variables: the network's collections other than params, as in `Calibration`.
    """

    params: Any
    act_scale: jax.Array
    act_zero_point: jax.Array
    group_of_t: jax.Array
    plan: Plan = dataclasses.field(metadata={"static": True})
    variables: Any = dataclasses.field(default_factory=dict)


def quantize(params: Any, calib: Calibration, *, dtype: jax.typing.DTypeLike | None = None) -> QuantizedParams:
    """Puts the kernels of all planned sites on their grids. Pure and jittable.

    Each kernel becomes `QTensor` by `qvalue = clip(round_half_even(w / scale) + zero_point, lo, hi)` with the scales of
    the calibration; biases of integer sites become float32, in which they are added, so that no call converts them; all
    other parameters pass through untouched, or into `dtype`.

    Args:
        params: the float params that were calibrated, nested dict.
        calib: from `jaxdq.calibrate`.
        dtype: of what stays in float and of what flows between the sites: bfloat16 is half the memory traffic of
            float32, and what a TPU is fast in. Then `jaxdq.apply` casts images and sequences to it, and the output back
            to what came; layers with a dtype of their own keep theirs. None leaves it to the params.

    Returns:
        QuantizedParams.

    Raises:
        InputError: params that are not the calibrated network's: a kernel is missing, has another shape, or (outside
            jit, where one can look) holds NaN or infinity; a dtype that is no float of 16 or 32 bits.

    Example:
        `qparams = jax.jit(jaxdq.quantize, static_argnames="dtype")(denoiser.params, calib, dtype="bfloat16")`
    """
    if not isinstance(calib, Calibration):
        raise InputError(f"calib is {type(calib).__name__}; pass what jaxdq.calibrate returned.")
    check_dtype(dtype)
    plan = calib.plan if dtype is None else calib.plan.computing_in(dtype)
    quantized = {}
    for site in calib.plan.sites:
        if site.site.kind != "product":
            _check_kernel(params, site)
        if site.weight is not None:
            quantized[site.path] = _quantize_kernel(params, site, calib.weights[site.path])
    return QuantizedParams(
        params=with_kernels(_cast(params, plan), quantized),
        act_scale=calib.act_scale,
        act_zero_point=calib.act_zero_point,
        group_of_t=calib.group_of_t,
        plan=plan,
        variables=calib.variables,
    )


def check_dtype(dtype: jax.typing.DTypeLike | None) -> None:
    """Refuses what is no float of 16 or 32 bits; None is what the params have."""
    try:
        known = dtype is None or jnp.dtype(dtype).name in _FLOATS
    except TypeError:
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


def _check_kernel(params: Any, site: SitePlan) -> None:
    kernel = kernel_at(params, site.path)
    if kernel is None or tuple(kernel.shape) != site.site.shape:
        came = "no such kernel" if kernel is None else f"shape {tuple(kernel.shape)}"
        raise InputError(
            f"'{site.path}' was calibrated with a kernel of shape {site.site.shape} and params have {came}; pass the "
            f"params of the calibrated network."
        )
    if not isinstance(kernel, jax.core.Tracer | jax.ShapeDtypeStruct):
        with jax.ensure_compile_time_eval():  # also within a trace, where constants would become tracers
            finite = bool(jnp.isfinite(kernel).all())
        if not finite:
            raise InputError(f"the kernel of '{site.path}' holds NaN or infinity; quantize params that are finite.")


def _quantize_kernel(params: Any, site: SitePlan, qparams: QParams) -> QTensor:
    assert site.weight is not None
    kernel = kernel_at(params, site.path)
    return site.with_code_sum(quantize_tensor(kernel, qparams, site.weight))
