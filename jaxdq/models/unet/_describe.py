"""What lies on disk of a model, told without reading its weights."""

from pathlib import Path
from typing import Any, NamedTuple

from jaxdq._common.errors import InputError
from jaxdq.models.unet._files import StoredWeights, read_json, stored_weights
from jaxdq.models.unet._folder import locate, read_unet_config

_READ_HERE = ("unet", "scheduler")


class ModelFiles(NamedTuple):
    """The files of a model.

    Attributes:
        unet_class: Diffusers' name of the network, such as "UNet2DModel".
        scheduler_class: Diffusers' name of the scheduler.
        beta_schedule: The schedule's name; "" where the scheduler's file is silent.
        parts: "name (class)" of the pipeline's other parts.
        weights: What is stored; None where there are no weights, or damaged ones.
        no_weights: Why there are no weights, in a sentence; "" where there are some.
    """

    unet_class: str
    scheduler_class: str
    beta_schedule: str
    parts: tuple[str, ...]
    weights: StoredWeights | None
    no_weights: str


def describe(name_or_path: str | Path, expected: Any) -> ModelFiles:
    """Describe a model's files.

    Args:
        name_or_path: What ``load_denoiser`` takes; of a Hub model the weights are described if they are in the cache.
        expected: The shapes of the network's parameters, from ``abstract_params``.

    Returns:
        The description.

    Raises:
        InputError: There is no such model, or one of its configurations is damaged.
    """
    layout = locate(name_or_path, weights=False)
    model_class, config = read_unet_config(layout.unet)
    scheduler = read_json(layout.scheduler)
    weights: StoredWeights | None = None
    no_weights = ""
    try:
        weights = stored_weights(layout.unet, expected, model_class.class_name)
    except InputError as error:
        no_weights = str(error)
    return ModelFiles(
        unet_class=str(config.get("_class_name", model_class.class_name)),
        scheduler_class=str(scheduler.get("_class_name", "DDIMScheduler")),
        beta_schedule=str(scheduler.get("beta_schedule", "")),
        parts=_parts(layout.root),
        weights=weights,
        no_weights=no_weights,
    )


def _parts(root: Path) -> tuple[str, ...]:
    """The folders beside the UNet's that have a configuration, each with the class that it names."""
    parts = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name not in _READ_HERE):
        file = folder / "config.json"
        if file.is_file():
            config = read_json(file)
            architectures = config.get("architectures")
            first = architectures[0] if isinstance(architectures, list) and architectures else "class not named"
            parts.append(f"{folder.name} ({config.get('_class_name', first)})")
    return tuple(parts)
