"""A trained model together with all it takes to sample from it."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._common.checks import is_whole
from jaxdq._common.errors import InputError
from jaxdq._common.trees import unboxed
from jaxdq.diffusion._check import check_params, checked_conditions
from jaxdq.diffusion._schedule import NoiseSchedule
from jaxdq.diffusion._variables import checked_variables, with_variables


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A trained diffusion model. A host object, hashable by identity; change it with `dataclasses.replace`.

    Attributes:
        module: A flax linen module, or anything with its
            `apply({"params": params}, x: f32[B, H, W, C], t: int32[], *conditions) -> [B, H, W, C]`.
        params: Pytree of finite arrays; the boxes of `nn.with_partitioning` are taken off.
        schedule: What the model was trained to undo.
        shape: (H, W, C) of one image; of what is drawn instead, any number of axes with the channels last: (L, C) of
            tokens or a signal, (F, H, W, C) of a video.
        conditions: Arrays with a leading axis of rows, the arguments after t; image i takes row i % P. Calibration and
            evaluation `spread` their images over all rows if they have fewer images than that.
            `jax.ShapeDtypeStruct` serves to look at the model, and nothing can be drawn with it.
        name: What reports call the model.
        variables: The module's collections other than params, such as `{"batch_stats": ...}` of `nn.BatchNorm` in
            inference mode. Every call through `module` has them from then on: it becomes a wrapper around what was
            passed. They are kept with the quantized network, so that the bare module serves it too.
        sampler: Name of the sampler that the model's files ask for, as `diffusion.SAMPLERS` has it: what the command
            line draws with unless told otherwise.
        notes: What a person should know of how the model is run, in sentences: that a learned variance is not used.
        condition_names: What the network calls its conditions, if they have names; a guided model has each twice.

    Raises:
        InputError: A field does not fit its description; NaN and infinite parameters are named by their paths.

    Example:
        >>> from types import SimpleNamespace
        >>> from jaxdq.diffusion import linear_schedule
        >>> module = SimpleNamespace(apply=lambda variables, x, t: x * variables["params"]["scale"])
        >>> Denoiser(module, {"scale": np.ones(())}, linear_schedule(), (8, 8, 1)).name
        'custom'
    """

    module: Any
    params: Any
    schedule: NoiseSchedule
    shape: tuple[int, ...]
    conditions: tuple[Any, ...] = ()
    name: str = "custom"
    variables: Mapping[str, Any] = field(default_factory=dict)
    sampler: str = "ddim"
    notes: tuple[str, ...] = ()
    condition_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.module, type):
            raise InputError(f"module is the class {self.module.__name__}; pass a module, {self.module.__name__}(...).")
        if not callable(getattr(self.module, "apply", None)):
            raise InputError(
                f"module is a {type(self.module).__name__} without an apply method; pass a flax linen module."
            )
        if not isinstance(self.schedule, NoiseSchedule):
            raise InputError(
                f"schedule is a {type(self.schedule).__name__}; pass a NoiseSchedule, such as linear_schedule()."
            )
        object.__setattr__(self, "shape", _checked_shape(self.shape))
        object.__setattr__(self, "conditions", checked_conditions(self.conditions))
        if not isinstance(self.name, str):
            raise InputError(f"name is {self.name!r}; pass text: what reports call the model.")
        object.__setattr__(self, "params", unboxed(self.params))
        check_params(self.params)
        check_finite(self.params)
        object.__setattr__(self, "variables", unboxed(checked_variables(self.variables)))
        if self.variables:
            check_finite(self.variables, "variables")
        object.__setattr__(self, "module", with_variables(self.module, self.variables))

    def args(self, image_index: jax.Array) -> tuple[jax.Array, ...]:
        """Gather the conditions of some images.

        Args:
            image_index: int32[B] >= 0.

        Returns:
            One array of shape [B, ...] for each condition: the model's arguments after (x, t).

        Raises:
            InputError: A condition is a shape only.
        """
        shapes = [str(rows.shape) for rows in self.conditions if isinstance(rows, jax.ShapeDtypeStruct)]
        if shapes:
            raise InputError(
                f"The model '{self.name}' has conditions that are shapes only, {', '.join(shapes)}; give the "
                "arrays with load_denoiser(..., conditions=...) or dataclasses.replace(denoiser, conditions=...)."
            )
        return tuple(jnp.asarray(rows)[jnp.asarray(image_index) % len(rows)] for rows in self.conditions)

    @property
    def num_conditions(self) -> int:
        """Number of conditions that images take in turn, P; 0 of an unconditional model.

        Where the arrays have different numbers of rows it is their least common multiple.
        """
        return math.lcm(*(np.shape(rows)[0] for rows in self.conditions)) if self.conditions else 0

    def with_rows(self, rows: np.ndarray) -> "Denoiser":
        """The same model with these rows of its conditions.

        Args:
            rows: int[R] >= 0; images cycle through them: image i has row `rows[i % R]`.
        """

        def taken(array: Any) -> Any:
            index = np.asarray(rows) % np.shape(array)[0]
            if isinstance(array, jax.ShapeDtypeStruct):
                return jax.ShapeDtypeStruct((len(index), *array.shape[1:]), array.dtype)
            return np.asarray(array)[index]

        other = copy.copy(self)  # dataclasses.replace would look through all parameters again
        object.__setattr__(other, "conditions", tuple(taken(array) for array in self.conditions))
        return other

    def spread(self, num_images: int, key: jax.Array) -> tuple["Denoiser", np.ndarray]:
        """Spread images that are fewer than the conditions over all of them, not over the first ones.

        Args:
            num_images: N.
            key: Random key that the choice depends on.

        Returns:
            The model whose N images have N different conditions, each as likely as any other, and int[N]: their rows
            here. With N >= P the model as it is, and int[P]: all rows.
        """
        rows = spread_rows(self.num_conditions, num_images, key)
        return (self, rows) if len(rows) == self.num_conditions else (self.with_rows(rows), rows)

    def abstract_args(self, batch: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Return the shapes of what `args` returns for `batch` images, whether or not the conditions have values."""
        shapes = (jax.eval_shape(jnp.asarray, rows) for rows in self.conditions)
        return tuple(jax.ShapeDtypeStruct((batch, *shape.shape[1:]), shape.dtype) for shape in shapes)


def spread_rows(total: int, num_images: int, key: jax.Array) -> np.ndarray:
    """Choose rows for images: all in order if there are enough images, else different ones from a permutation.

    Args:
        total: Number of rows.
        num_images: N; what is no positive number is left to whoever draws the images.
        key: Random key of the permutation.

    Returns:
        int[min(N, total)].

    Example:
        >>> spread_rows(3, 8, jax.random.key(0))
        array([0, 1, 2])
    """
    if not is_whole(num_images) or not 0 < num_images < total:
        return np.arange(total)
    words = np.ravel(jax.random.key_data(key)).tolist()
    # The raw words of a bit generator are the same in every version of numpy; its permutations need not be.
    return np.argsort(np.random.PCG64(words).random_raw(total), kind="stable")[:num_images]


def check_finite(params: Any, name: str = "params") -> None:
    """Refuse parameters that hold a NaN or an infinity, and an empty tree.

    Args:
        params: Pytree of arrays; leaves without values (`jax.ShapeDtypeStruct`, tracers) and integers pass.
        name: What errors call the tree.

    Raises:
        InputError: Names the paths of the leaves at fault.

    Example:
        >>> check_finite({"conv_in": {"kernel": np.zeros((3, 3, 1, 8))}})
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise InputError(f"{name} has no arrays; pass the model's trained parameters, as module.init lays them out.")
    # On the host: eager jax would compile one program for each of a network's hundred shapes.
    is_finite = [not _has_values(leaf) or bool(np.isfinite(np.asarray(leaf)).all()) for _, leaf in leaves]
    faulty = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, _), finite in zip(leaves, is_finite, strict=True)
        if not finite
    ]
    if faulty:
        more = f" and {len(faulty) - 5} more" if len(faulty) > 5 else ""
        raise InputError(
            f"NaN or infinity in {name} at {', '.join(faulty[:5])}{more}; expected finite numbers: "
            "load the checkpoint again, or take one from before training diverged."
        )


def _has_values(leaf: Any) -> bool:
    """Whether a leaf holds numbers that can be other than finite."""
    abstract = isinstance(leaf, (jax.core.Tracer, jax.ShapeDtypeStruct))
    return not abstract and bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))


def _checked_shape(shape: Any) -> tuple[int, ...]:
    sizes = tuple(shape) if isinstance(shape, (tuple, list)) else ()
    if not sizes or not all(is_whole(size) and size > 0 for size in sizes):
        raise InputError(
            f"shape is {shape!r}; pass positive integers: (height, width, channels) of an image, or (length, channels)."
        )
    return tuple(int(size) for size in sizes)
