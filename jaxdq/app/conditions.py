"""Which classes or prompts a run draws from: chosen before any work, and named afterwards."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._common.errors import InputError
from jaxdq.app.settings import PROMPTS, Settings, key_of
from jaxdq.diffusion import Denoiser, spread_rows
from jaxdq.models import text
from jaxdq.models.unet import load_denoiser


class Choice(NamedTuple):
    """The conditions of a denoiser, by the numbers that a person knows.

    Attributes:
        kind: "classes" or "prompts".
        total: How many of them the model, or the file of prompts, has.
        ids: int[P], which one each row of the denoiser's conditions is, counted from 0.
    """

    kind: str
    total: int
    ids: np.ndarray

    def seen(self, **rows: np.ndarray | None) -> dict[str, Any]:
        """What metrics.json says of the conditions.

        Args:
            **rows: int[R], rows of the denoiser's conditions: `calibrated` and `evaluated`.

        Returns:
            `kind`, `total`, `chosen` (the ids of all rows; None is every id), and the ids of the given rows.
        """
        ids = np.asarray(self.ids)
        named = {name: np.sort(ids[found]) for name, found in rows.items() if found is not None}
        return {"kind": self.kind, "total": self.total, "chosen": None if len(ids) == self.total else ids, **named}


def load_model(settings: Settings) -> tuple[Denoiser, Choice | None]:
    """The float model of a run, with the classes or prompts that the settings name.

    Of a file with more prompts than calibration and evaluation have images, only as many are embedded, spread over the
    file by a permutation that the seed decides.

    Returns:
        The denoiser, and what its conditions are; None of an unconditional model.

    Raises:
        InputError: The model can't be loaded, or has no such classes.
    """
    if settings.prompts is not None:
        prompts = text.read_prompts(settings.prompts)
        num_images = max(settings.images, settings.calibration_images)
        ids = spread_rows(len(prompts), num_images, key_of(settings.seed, PROMPTS))
        chosen = [prompts[index] for index in ids]
        # Rows that come one for each prompt stay with it.
        others = {
            name: rows[ids] if len(rows) == len(prompts) else rows
            for name, rows in ({} if settings.conditions is None else text.read_conditions(settings.conditions)).items()
        }
        denoiser = text.load_text_denoiser(settings.model, chosen, guidance_scale=settings.guidance, others=others)
        return denoiser, Choice("prompts", len(prompts), ids)
    if settings.conditions is not None:
        return text.load_conditioned(settings.model, text.read_conditions(settings.conditions)), None
    if settings.classes is not None:  # refused from the configurations, before the weights are read
        with_classes(load_denoiser(settings.model, weights=False), settings.class_ids)
    return with_classes(load_denoiser(settings.model), settings.class_ids)


def choice_of_run(
    denoiser: Denoiser, metrics: Mapping[str, Any], class_ids: tuple[int, ...] | None
) -> tuple[Denoiser, Choice | None]:
    """A run's model with its classes or prompts; the prompts are those that the run embedded.

    Args:
        denoiser: As `jaxdq.models.text.load_with_conditions` returns it.
        metrics: The run's.
        class_ids: As in `with_classes`.
    """
    found = metrics.get("conditions")
    if class_ids is not None or not isinstance(found, Mapping) or found.get("kind") != "prompts":
        return with_classes(denoiser, class_ids)
    ids = np.arange(denoiser.num_conditions) if found.get("chosen") is None else np.asarray(found["chosen"])
    return denoiser, Choice("prompts", found.get("total", len(ids)), ids)


def with_classes(denoiser: Denoiser, class_ids: tuple[int, ...] | None) -> tuple[Denoiser, Choice | None]:
    """A class-conditional model that draws these classes in turn.

    Args:
        denoiser: Any model.
        class_ids: Class numbers from 0; None leaves the model as it is.

    Returns:
        The denoiser, and what its conditions are; None of a model without classes.

    Raises:
        InputError: The model has no classes, or not these.
    """
    total = num_classes(denoiser)
    if class_ids is None:
        return denoiser, None if total is None else Choice("classes", total, np.arange(total))
    asked = ", ".join(map(str, class_ids))
    if total is None:
        what = "draws from other conditions" if denoiser.conditions else "is unconditional"
        raise InputError(f"classes {asked} were asked for, and '{denoiser.name}' {what}; name no classes.")
    if max(class_ids) >= total:
        raise InputError(f"classes {asked} were asked for, and '{denoiser.name}' has {total}: 0 to {total - 1}.")
    return denoiser.with_rows(np.asarray(class_ids)), Choice("classes", total, np.asarray(class_ids))


def num_classes(denoiser: Denoiser) -> int | None:
    """How many classes a model draws from; None of a model whose condition is not its classes in order."""
    if len(denoiser.conditions) != 1 or isinstance(denoiser.conditions[0], jax.ShapeDtypeStruct):
        return None
    rows = np.asarray(denoiser.conditions[0])
    is_count = rows.ndim == 1 and jnp.issubdtype(rows.dtype, jnp.integer) and (rows == np.arange(len(rows))).all()
    return len(rows) if is_count else None
