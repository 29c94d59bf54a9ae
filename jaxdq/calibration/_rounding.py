"""Rounding kernels so that what their layers return, and not each weight, comes closest (Optimal Brain Compression)."""

import dataclasses
import functools
import warnings
from collections.abc import Container, Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._common.devices import gather, replicate, replicated
from jaxdq._common.errors import InputError, InputWarning
from jaxdq._common.progress import track
from jaxdq.calibration._base import Run, Work, calibrator, check_at_least, check_not_negative
from jaxdq.calibration.tools.compression import Pruned, pruned_by_error, rounded_by_error
from jaxdq.calibration.tools.propagation import Sensitivity
from jaxdq.calibration.tools.pruning import Sparsity
from jaxdq.calibration.tools.rows import image_error, step_weights
from jaxdq.calibration.tools.selection import counts_of
from jaxdq.grid import Grid, QTensor, quantize
from jaxdq.linen import (
    Acts,
    Plan,
    SitePlan,
    apply_visited,
    fit_in_parts,
    kernel_at,
    kernel_from_matrix,
    kernel_matrix,
    layers_of,
    rows_of,
    without_rows,
)
from jaxdq.observers import WeightQParams
from jaxdq.sampling import Batch, num_batches, one_pass

RoundingMethod = Literal["gptq", "obq"]
_DECIDED = "it is decided already"


class Layer(NamedTuple):
    """A kernel that is one matrix.

    Attributes:
        site: Its plan.
        module: The layer alone.
        grid: Grid that its kernel is rounded to.
        kernel: f32[G, K, N / G], in float (`kernel_matrix`).
        pruned: The kernel of each group without what was removed, or None.
    """

    site: SitePlan
    module: Any
    grid: Grid
    kernel: jax.Array
    pruned: tuple[Pruned, ...] | None = None

    @property
    def hessian_shape(self) -> tuple[int, int, int]:
        groups, length, _ = self.kernel.shape
        return groups, length, length


@calibrator(needs=(Grid, Acts, Sensitivity), gives=(Grid,))
def compensate_rounding(
    method: RoundingMethod = "gptq",
    damping: float = 0.01,
    num_images: int = 8,
    portion_bytes: int = 2**30,
    sparsity: str | float | None = None,
    weight_range: WeightQParams | None = None,
) -> Run:
    """Rounds every planned kernel to the grid it has, each weight making up for the errors of those before it.

    With the rows x that a kernel w [K, N] multiplies in the float model (patches of a convolution) at all steps s, and
    `H = sum_s v_s x_s^T x_s`, codes are sought that make

        sum_s v_s |x_s (w - w^)|^2 = tr((w - w^)^T H (w - w^))

    small (`tools.compression`). The weight v of a step is that of `learn_ranges`: half of it makes the relative error
    of every step count alike, half is what an error at that step costs the image. An output channel keeps nearest
    rounding where that is no worse, and so does the network where its images come no closer on the integer path.

    With a sparsity, some weights become 0 first, and the others make up for them too: by ExactOBS with "obq", by what
    each removal alone costs with "gptq" (`tools.pruning`). A pruned network is what was asked for: it stays, whatever
    its images. XLA has no kernel that is faster for zeros; they make the file on disk smaller.

    Kernels that are no one matrix (stacked by `nn.scan`, masked, batched) or whose inputs can't be seen
    (inside `nn.jit` and its like) keep nearest rounding and are named in the log, as are codes that were decided
    before. If those are more than half, a warning says so.

    Where we deviate from the source: one Hessian for all timesteps, weighted by step; inputs that are always 0 keep
    their weights, rounded to nearest, and are not zeroed.

    Args:
        method: "gptq", one order of the inputs for all outputs; or "obq", greedy in each, O(N K^3): minutes where K is
            a thousand.
        damping: Share of the mean of H's diagonal that is added to it.
        num_images: Images at each step whose rows are summed.
        portion_bytes: Hessians of how many bytes are held at a time; each portion is one more pass over the states.
        sparsity: Share of each kernel's weights that become 0, such as 0.5; "2:4" keeps two of each four neighbouring
            inputs of each output (in the order of the kernel's axes, input channels last); None keeps all. Layers
            of one row an image (the time path) keep all weights, which are few and count for every pixel, as do layers
            with fewer inputs than the M of the pattern.
        weight_range: Such as `jaxdq.observers.mse_weights()`; fits the grids to what was pruned, None leaves them.

    Returns:
        A calibrator that puts codes in place of grids.

    Raises:
        InputError: An unknown method, a negative damping, no images, a sparsity that is neither, or an M
            beyond every layer's inputs.

    Source: Frantar et al., arXiv 2208.11580 (Optimal Brain Compression) and arXiv 2210.17323 (GPTQ).
    """
    if method not in get_args(RoundingMethod):
        raise InputError(f"method is {method!r}; give one of {', '.join(map(repr, get_args(RoundingMethod)))}.")
    check_not_negative(damping=damping)
    check_at_least(1, num_images=num_images, portion_bytes=portion_bytes)
    pattern = None if sparsity is None else Sparsity.of(sparsity)
    of_kernel = weight_range and functools.partial(fit_in_parts, weight_range)
    fit = of_kernel and jax.jit(of_kernel, static_argnums=(1, 2, 3))

    def run(work: Work, key: jax.Array) -> Work:
        layers, left = _layers(work)
        codes: dict[str, QTensor] = {}
        errors: dict[str, np.ndarray] = {}
        to_prune = set() if pattern is None else _to_prune(layers, pattern)
        for portion in _portions(layers, portion_bytes):
            hessians = gather_hessians(work, portion, num_images)
            for path, layer in track(portion.items(), f"round by {method}"):
                if not np.any(hessians[path]):
                    left[path] = "no inputs of it were seen"
                    continue
                if path in to_prune and pattern is not None:
                    layer = _pruned(layer, hessians[path], pattern, method == "obq", damping, fit)
                codes[path], errors[path] = _rounded(layer, hessians[path], method == "obq", damping)
        _warn_of_most(left, len(codes), method)
        plan = work.plan if pattern is None else _with_sparsity(work.plan, to_prune & set(codes), str(pattern))
        rounded = work.deciding(plan=plan, weights={**work.calib.weights, **codes})
        tried = {"nearest": image_error(work), method: image_error(rounded)} if codes else {}
        keep = tried and (to_prune or tried[method] <= tried["nearest"])
        log: dict[str, Any] = {
            "tried": tried,
            "kept": method if keep else "nearest",
            "layer_error": {path: float(after / max(before, 1e-30)) for path, (before, after) in errors.items()},
            "left": left,
        }
        return (rounded if keep else work).logging("compensate_rounding", log)

    return run


def _warn_of_most(left: Mapping[str, str], num_rounded: int, method: str) -> None:
    others = [f"'{path}' ({reason})" for path, reason in left.items() if reason != _DECIDED]
    if len(others) > num_rounded:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        warnings.warn(
            f"{method} rounded {num_rounded} of {num_rounded + len(others)} kernels; the others keep nearest rounding: "
            f"{shown}.",
            InputWarning,
            stacklevel=2,
        )


def gather_hessians(work: Work, layers: Mapping[str, Layer], num_images: int) -> dict[str, jax.Array]:
    """Path -> f32[G, K, K], `sum_s v_s x_s^T x_s` of the rows x that each layer's kernel multiplies.

    Divided by the number of batches and the mean of v on the way, so that float32 holds it.
    """
    module, (batch_size, mesh, _) = work.denoiser.module, work.machine
    counts = np.minimum(counts_of(work), num_images)
    total, weight = num_batches(counts, batch_size, mesh), step_weights(work)
    share = jnp.asarray(weight / (np.mean(weight) * total), jnp.float32)

    @functools.partial(jax.jit, donate_argnums=1, out_shardings=replicated(mesh))
    def update(params: Any, sums: dict[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
        sums = dict(sums)

        def visitor(name: str, x: jax.Array) -> jax.Array:
            if name in sums:
                rows = rows_of(layers[name].module, x, layers[name].site.site.shape)
                product = jnp.einsum("grk,grl->gkl", rows, rows, precision=jax.lax.Precision.HIGHEST)
                sums[name] = sums[name] + share[batch.step] * product
            return x

        apply_visited(module, params, visitor, batch.x, batch.t, *batch.args)
        return sums

    sums: Any = {path: jnp.zeros(layer.hessian_shape, jnp.float32) for path, layer in layers.items()}
    params, sums = replicate((work.denoiser.params, sums), mesh)
    batches = one_pass(work.denoiser, work.data, batch_size, counts, mesh=mesh)
    for batch in track(batches, "gather Hessians", total=total):
        sums = update(params, sums, batch)
    return gather(sums, mesh)


def _layers(work: Work) -> tuple[dict[str, Layer], dict[str, str]]:
    """The kernels to round, and path -> why another one keeps what it has."""
    denoiser = work.denoiser
    x, t = jax.ShapeDtypeStruct((2, *denoiser.shape), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    modules = layers_of(denoiser.module, denoiser.params, x, t, *denoiser.abstract_args(2))
    layers, left = {}, {}
    for site in work.plan.sites:
        if site.weight is None:
            continue
        grid = work.calib.weights[site.path]
        reason = without_rows(site, modules[site.path]) or ("" if isinstance(grid, Grid) else _DECIDED)
        if reason or not isinstance(grid, Grid):
            left[site.path] = reason
        else:
            kernel = kernel_matrix(modules[site.path], kernel_at(denoiser.params, site.path).astype(jnp.float32))
            layers[site.path] = Layer(site, modules[site.path], grid, kernel)
    return layers, left


def _portions(layers: Mapping[str, Layer], portion_bytes: int) -> Iterator[dict[str, Layer]]:
    """Layers in order, Hessians of at most `portion_bytes` at a time, or one."""
    portion: dict[str, Layer] = {}
    size = 0
    for path, layer in layers.items():
        own = 4 * int(np.prod(layer.hessian_shape))
        if portion and size + own > portion_bytes:
            yield portion
            portion, size = {}, 0
        portion[path], size = layer, size + own
    if portion:
        yield portion


def _to_prune(layers: Mapping[str, Layer], sparsity: Sparsity) -> set[str]:
    """The layers of more than one row an image (all, where none has) and as many inputs as M of the pattern."""
    least_rows = min(2, max((layer.site.site.rows for layer in layers.values()), default=1))
    wide = {path: layer for path, layer in layers.items() if layer.site.site.rows >= least_rows}
    found = {path for path, layer in wide.items() if layer.kernel.shape[1] >= sparsity.group}
    if wide and not found:
        most = max(layer.kernel.shape[1] for layer in wide.values())
        raise InputError(f"sparsity is {sparsity} and no layer has more than {most} inputs; give a smaller pattern.")
    return found


def _with_sparsity(plan: Plan, paths: Container[str], sparsity: str) -> Plan:
    sites = (dataclasses.replace(site, sparsity=sparsity) if site.path in paths else site for site in plan.sites)
    return dataclasses.replace(plan, sites=tuple(sites))


def _rounded(layer: Layer, hessian: jax.Array, greedy: bool, damping: float) -> tuple[QTensor, np.ndarray]:
    """The kernel in codes, and f64[2]: its error by nearest rounding and now."""
    shape, scheme, qparams = layer.site.site.shape, layer.grid.scheme, layer.grid.qparams
    columns = jax.tree.map(lambda leaf: kernel_matrix(layer.module, jnp.broadcast_to(leaf, shape)), qparams)
    columns = columns if layer.site.parts else jax.tree.map(lambda leaf: leaf[:, 0], columns)
    made = [
        rounded_by_error(
            layer.kernel[g],
            jnp.asarray(hessian[g]),
            jax.tree.map(lambda leaf, g=g: leaf[g], columns),
            scheme,
            greedy=greedy,
            damping=damping,
            pruned=layer.pruned and layer.pruned[g],
        )
        for g in range(layer.kernel.shape[0])
    ]
    kernel = kernel_from_matrix(layer.module, jnp.stack([rounded for rounded, _ in made]), shape)
    return quantize(kernel, qparams, scheme), np.sum([np.float64(errors).sum(1) for _, errors in made], axis=0)


def _pruned(layer: Layer, hessian: jax.Array, sparsity: Sparsity, greedy: bool, damping: float, fit: Any) -> Layer:
    """The layer with the weights that stay where they lose least, on a grid that is fitted to them."""
    made = tuple(
        pruned_by_error(kernel, jnp.asarray(own), sparsity, greedy=greedy, damping=damping)
        for kernel, own in zip(layer.kernel, hessian, strict=True)
    )
    kernel = kernel_from_matrix(layer.module, jnp.stack([w for w, _ in made]), layer.site.site.shape)
    site, scheme = layer.site, layer.grid.scheme
    qparams = fit(kernel, scheme, site.parts, site.input_axis) if fit else layer.grid.qparams
    return layer._replace(grid=Grid(qparams, scheme), pruned=made)
