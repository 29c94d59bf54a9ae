"""`calibrate`: from a denoiser and a recipe to all that can be learned of it, without training data."""

import dataclasses
import functools
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdq._common.checks import check_count, shown
from jaxdq._common.describe import describe
from jaxdq._common.devices import is_first_process
from jaxdq._common.errors import InputError, InputWarning, described
from jaxdq._common.folders import write_whole
from jaxdq._common.paths import is_remote, path_of, reaching
from jaxdq.calibration._base import Calibrator, Judge, Machine, Problem, Work, check_order
from jaxdq.calibration.tools.selection import check_num_groups
from jaxdq.checkpoint import versions
from jaxdq.diffusion import Denoiser, Sampler, TimePerRow
from jaxdq.linen import Calibration, Plan, Rule, Site, check_coverage, find_sites, make_plan
from jaxdq.sampling import Trajectories, check_arguments, trajectories

_JUDGE = 2  # what `fold_in` makes of it is no half of the key's split


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A named composition: what is quantized how, and by which calibrators.

    Attributes:
        name: Name on the command line.
        rules: The sites of a network -> the rules for them.
        calibrators: Run in order; together they fit grids for weights and activations.
        adds: Those of them, last, that can stand after another recipe's (`recipes.chain`): what a method does once
            there are grids.
    """

    name: str
    rules: Callable[[Sequence[Site]], Sequence[Rule]]
    calibrators: tuple[Calibrator, ...]
    adds: tuple[Calibrator, ...] = ()

    def __post_init__(self) -> None:
        if not callable(self.rules):
            raise InputError(
                f"the rules of recipe '{self.name}' are {shown(self.rules)}; pass a function of the network's sites, "
                f"such as `lambda sites: [Rule('.*', Scheme(8), Scheme(8))]`."
            )
        if not isinstance(self.calibrators, tuple):
            raise InputError(f"the calibrators of recipe '{self.name}' are {shown(self.calibrators)}; pass a tuple.")

    def adding(self, *calibrators: Calibrator) -> "Recipe":
        """The recipe with these calibrators after its own."""
        return dataclasses.replace(self, calibrators=(*self.calibrators, *calibrators), adds=(*self.adds, *calibrators))

    @property
    def settings(self) -> dict[str, Any]:
        """What the rules and each calibrator were made with, in plain values.

        They stand in metrics.json, and by them a `checkpoint_dir` tells its own run from another.
        """
        calibrators = [{"name": one.name, **one.settings} for one in self.calibrators]
        return {"rules": describe(self.rules), "calibrators": calibrators}

    @property
    def num_groups(self) -> int:
        """Time groups that the recipe asks for: the `num_groups` of the last calibrator that has one; else 1."""
        groups = [one.settings["num_groups"] for one in self.calibrators if "num_groups" in one.settings]
        return groups[-1] if groups else 1


def calibrate(
    denoiser: Denoiser,
    recipe: Recipe,
    *,
    sampler: Sampler,
    key: jax.Array,
    num_images: int = 32,
    batch_size: int = 32,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    mesh: Mesh | None = None,
) -> Calibration:
    """Learns a calibration from the denoiser's own samples.

    Args:
        denoiser: The float model.
        recipe: Such as `jaxdq.recipes.uniform_groups(weight_bits=8, act_bits=8, num_groups=8)`.
        sampler: Sampler of the trajectories to calibrate on; the result serves any sampler and number of steps.
        key: A random key for noise and whatever the calibrators draw.
        num_images: Trajectories to sample; where the model has more conditions (classes, prompts), they are spread over
            all of them by a permutation that the key decides.
        batch_size: Images at a time.
        checkpoint_dir: A folder for the state of loops that learn; the same call after a kill goes on from there and
            ends in the same bits. Of several processes the first writes, and all must see what it wrote. `~` and URIs
            such as gs://bucket/folder are understood as by `jaxdq.save`.
        mesh: Mesh of one axis. The images of a batch, and the rows of loops that learn, are sharded over its devices;
            the params are replicated. None is one device. The result is one device's up to the order of float sums.
            Over several hosts (`jax.distributed`) every process makes the same call and has the result.

    Returns:
        Calibration: scales, groups and the plan; a small pytree.

    Raises:
        InputError: Calibrators in an order that cannot work, rules that don't fit the network, more groups than steps,
            NaN or infinity in weights or activations, a checkpoint_dir of another run, a mesh of more axes than one.

    Example:
        `calib = jaxdq.calibrate(denoiser, recipe, sampler=jaxdq.ddim(50), key=jax.random.key(0))`
    """
    return run_recipe(
        denoiser,
        recipe,
        sampler=sampler,
        key=key,
        num_images=num_images,
        batch_size=batch_size,
        checkpoint_dir=checkpoint_dir,
        mesh=mesh,
    ).calib


def run_recipe(
    denoiser: Denoiser,
    recipe: Recipe,
    *,
    sampler: Sampler,
    key: jax.Array,
    num_images: int = 32,
    batch_size: int = 32,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    mesh: Mesh | None = None,
) -> Work:
    """`calibrate`, with all that was seen on the way: the ranges by step and what the calibrators report.

    Args and errors as in `calibrate`.

    Returns:
        Work, with a calibration.
    """
    folder = None if checkpoint_dir is None else path_of(checkpoint_dir)
    if not isinstance(recipe, Recipe):
        raise InputError(f"recipe is {recipe!r:.60}; pass one that a function of jaxdq.recipes returned.")
    check_arguments(denoiser, getattr(denoiser, "params", None), sampler, key)
    key_noise, key_learn = jax.random.split(key)
    check_count(num_images, batch_size)
    check_order(recipe.name, recipe.calibrators, keeps_state=checkpoint_dir is not None)
    check_num_groups(recipe.num_groups, sampler.num_steps)
    denoiser, plan = _planned(denoiser, recipe)
    if left := check_coverage(plan, f"'{denoiser.name}'"):
        warnings.warn(left, InputWarning, stacklevel=3)
    if folder is not None:
        runs = describe([one.run for one in recipe.calibrators])
        asked = [recipe.name, recipe.settings, runs, repr(sampler), num_images, batch_size, str(plan)]
        # Without the address that a plain object's repr holds, which is another in every process.
        module = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(denoiser.module))
        _claim(folder, [*asked, module, denoiser.shape, versions(), _digest(denoiser)], key)
    denoiser, rows = denoiser.spread(num_images, key)
    draw = functools.partial(
        trajectories,
        denoiser,
        denoiser.params,
        sampler=sampler,
        num_images=num_images,
        batch_size=batch_size,
        mesh=mesh,
    )
    data = draw(key=key_noise)
    _refuse_non_finite(data)
    # The same program as the trajectories', of which images alone are kept.
    judge = Judge(jax.random.fold_in(key, _JUDGE), lambda key: draw(key=key).images)
    problem = Problem(denoiser, sampler, data, judge, rows)
    calib = Calibration(weights={}, acts=None, plan=plan, variables=denoiser.variables)
    work = Work(problem, Machine(batch_size, mesh), {}, calib)
    work = work.logging("coverage", {"warning": left}) if left else work
    for index, calibrator in enumerate(recipe.calibrators):
        own = None if folder is None else folder / calibrator.name
        work = calibrator(work.with_machine(folder=own), jax.random.fold_in(key_learn, index))
    return work.with_machine(folder=folder)


def plan_for(denoiser: Denoiser, recipe: Recipe) -> Plan:
    """What the recipe would do to this denoiser, before any work is done. Params and conditions may be abstract."""
    return _planned(denoiser, recipe)[1]


def _planned(denoiser: Denoiser, recipe: Recipe) -> tuple[Denoiser, Plan]:
    """The plan, and the denoiser as it can be called with a scalar t."""
    denoiser, sites = _traced(denoiser)
    if not sites:
        raise InputError(
            f"{type(denoiser.module).__name__} calls no Dense, DenseGeneral or Conv of flax.linen, so there is nothing "
            f"to quantize; pass a module made of those."
        )
    return denoiser, make_plan(recipe.rules(sites), sites, denoiser.params)


def _traced(denoiser: Denoiser) -> tuple[Denoiser, tuple[Site, ...]]:
    """The sites of a denoiser, and the denoiser, whose module is wrapped if it can't take a scalar t."""
    x, t, args = jnp.zeros((2, *denoiser.shape), jnp.float32), jnp.zeros((), jnp.int32), denoiser.abstract_args(2)

    def traced(module: Any) -> tuple[Denoiser, tuple[Site, ...]]:
        sites = find_sites(module, denoiser.params, x, t, *args)
        return denoiser if module is denoiser.module else dataclasses.replace(denoiser, module=module), sites

    try:
        return traced(denoiser.module)
    except InputError:
        raise
    except Exception as error:  # whatever the module raises when it is not called as it wants to be
        try:
            return traced(TimePerRow(denoiser.module))
        except Exception as of_rows:
            tried = dict.fromkeys(map(described, (error, of_rows)))
            raise InputError(
                f"{type(denoiser.module).__name__} can't be called as module.apply({{'params': params}}, x, t, "
                f"*conditions) with x of shape {x.shape} and t a scalar or of shape (2,) ({'; then '.join(tried)}); "
                f"pass a module, params, shape and conditions that fit together."
            ) from error


def _refuse_non_finite(data: Trajectories) -> None:
    bad = ~np.isfinite(data.outputs).all(axis=tuple(range(1, data.outputs.ndim)))
    if bad.any():
        raise InputError(
            f"the float model returns NaN or infinity at t = {data.t[int(np.argmax(bad))]}; check the model's weights "
            f"and its schedule before quantizing it."
        )


def _digest(denoiser: Denoiser) -> str:
    """A checksum of the numbers that make the model and its noise."""
    guidance_scale = getattr(denoiser.module, "guidance_scale", None)
    digest = hashlib.sha256(repr((denoiser.schedule, guidance_scale)).encode())
    numbers = (denoiser.params, denoiser.conditions, dict(denoiser.variables))
    arrays = jax.tree.leaves((denoiser.schedule.alphas_cumprod, *numbers))
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _claim(folder: Any, asked: list[Any], key: jax.Array) -> None:
    """Marks a checkpoint folder as this run's, or refuses it as another's.

    Args:
        folder: Result of `path_of`.
        asked: All that a run is known by.
        key: The run's.
    """
    ours = json.dumps([*asked, np.asarray(jax.random.key_data(key)).tolist()])
    mark = folder / "run.json"
    with reaching(folder):
        if mark.exists() and mark.read_text() != ours:
            raise InputError(
                f"'{folder}' holds the state of another run; choose another folder, or remove it to start anew."
            )
        if not is_first_process():
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if is_remote(mark):
                mark.write_text(ours)  # an object is there whole or not at all
            else:
                write_whole(mark, ours.encode())
        except OSError as error:
            raise InputError(
                f"'{folder}' can't hold what a calibration learns ({error.strerror or error}); give checkpoint_dir a "
                f"folder that can be made and written to."
            ) from error
