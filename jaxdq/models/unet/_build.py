"""Which network a configuration describes, and the shapes of its parameters."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from jaxdq.models.unet._config import complete_config
from jaxdq.models.unet._config_condition import complete_condition_config
from jaxdq.models.unet._config_controlnet import complete_controlnet_config
from jaxdq.models.unet._controlnet import Controlled, ControlNet, controlnet_from_config
from jaxdq.models.unet._unet2d import UNet2D, unet2d_from_config
from jaxdq.models.unet._unet2d_condition import UNet2DCondition, unet2d_condition_from_config

UNet = UNet2D | UNet2DCondition


class ModelClass(NamedTuple):
    """What belongs to one of diffusers' classes.

    Attributes:
        class_name: Name of the PyTorch class, which a pickle is converted with.
        complete: Checks a configuration and fills in what it leaves out.
        build: Makes the module that a configuration describes.
    """

    class_name: str
    complete: Callable[[Mapping[str, Any]], dict[str, Any]]
    build: Callable[[Mapping[str, Any]], UNet | ControlNet]


_UNET2D = ModelClass("UNet2DModel", complete_config, unet2d_from_config)
_CONDITION = ModelClass("UNet2DConditionModel", complete_condition_config, unet2d_condition_from_config)
_CONTROLNET = ModelClass("ControlNetModel", complete_controlnet_config, controlnet_from_config)
MODEL_CLASSES = {
    "UNet2DModel": _UNET2D,
    "UNet2DConditionModel": _CONDITION,
    "FlaxUNet2DConditionModel": _CONDITION,
    "ControlNetModel": _CONTROLNET,
    "FlaxControlNetModel": _CONTROLNET,
}
"""The ``_class_name`` of a config.json -> what belongs to it."""


def abstract_params(module: UNet | ControlNet | Controlled) -> Any:
    """Return the shapes of the module's parameters without making them.

    Args:
        module: Result of ``unet2d_from_config`` or ``unet2d_condition_from_config``.

    Returns:
        The parameter tree with ``jax.ShapeDtypeStruct`` leaves, all float32.
    """
    return jax.eval_shape(module.init, jax.random.key(0), *module.abstract_inputs())["params"]
