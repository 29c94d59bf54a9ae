"""Models on disk in diffusers' layout: ``model_index.json``, ``unet/`` and ``scheduler/``.

Weights are read from safetensors only. A pickle (``.bin``, ``.ckpt``, ``.pt``) can run code when it is opened, so none
ever is.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jaxdq._errors import InputError
from jaxdq.diffusion import Denoiser, schedule_from_config
from jaxdq.unet._config import complete_config
from jaxdq.unet._unet2d import UNet2D, abstract_params, unet2d_from_config
from jaxdq.unet._weights import params_from_torch, torch_from_params

UNET_CLASS = "UNet2DModel"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
_BUNDLED = Path(__file__).parents[1] / "bundled"
_WEIGHTS_FILES = (
    WEIGHTS_FILE,
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.safetensors.index.fp16.json",
)
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


class _Layout(NamedTuple):
    """Where one model lies: its name, the folder of its UNet, and its scheduler_config.json."""

    name: str
    unet: Path
    scheduler: Path


def bundled_models() -> tuple[str, ...]:
    """Return the names of the models that come with jaxdq, for ``load_denoiser``."""
    return tuple(sorted(path.parent.name for path in _BUNDLED.glob("*/model_index.json")))


def load_denoiser(name_or_path: str | Path, *, weights: bool = True) -> Denoiser:
    """Load a diffusion model that comes with jaxdq, or from a folder in diffusers' layout.

    Args:
        name_or_path: one of ``bundled_models()``, or a folder with ``unet/`` and ``scheduler/``, or a folder that has
            the UNet's config.json itself and a scheduler_config.json in it or in ``../scheduler``.
        weights: False leaves the weights on disk: the parameters are ``jax.ShapeDtypeStruct``.

    Returns:
        The denoiser; a class-conditional model's images go through its classes in order.

    Raises:
        InputError: there is no such model, a file is absent, damaged or does not fit the others, or the model is of a
            kind that jaxdq does not support; the sentence names the file or the field.

    Example:
        >>> load_denoiser("digits").shape
        (16, 16, 1)
    """
    layout = _locate(name_or_path)
    schedule = schedule_from_config(_read_json(layout.scheduler))
    config = _read_unet_config(layout.unet)
    module = unet2d_from_config(config)
    shape, conditions = _image_shape(config, layout.unet), _conditions(module)
    params = _read_params(layout.unet, module) if weights else abstract_params(module)
    return Denoiser(module, params, schedule, shape, conditions, name=layout.name)


def load_unet_folder(path: str | Path) -> tuple[UNet2D, dict[str, Any], dict[str, Any]]:
    """Load a UNet alone from the folder that has its config.json and its weights.

    Args:
        path: the folder, for example the ``unet`` folder of a pipeline.

    Returns:
        The module, its parameters (float32) and the configuration with every field filled in.

    Raises:
        InputError: a file is absent, damaged or does not fit the others, or the model is of an unsupported kind.
    """
    config = _read_unet_config(Path(path))
    module = unet2d_from_config(config)
    return module, _read_params(Path(path), module), complete_config(config)


def save_unet_folder(
    path: str | Path, module_config: Mapping[str, Any], params: Any, scheduler_config: Mapping[str, Any]
) -> None:
    """Write a model as diffusers does, so that ``load_denoiser`` and diffusers' PyTorch classes can read it.

    Args:
        path: the folder to write, made if need be: model_index.json, ``unet/`` and ``scheduler/``.
        module_config: the fields of ``UNet2DModel``.
        params: the parameter tree of ``unet2d_from_config(module_config)``.
        scheduler_config: the contents of scheduler_config.json, ``_class_name`` included.

    Raises:
        InputError: a configuration is not supported, or the parameters do not fit it; nothing is written then.
    """
    tensors = torch_from_params(params)
    params_from_torch(tensors, abstract_params(unet2d_from_config(module_config)), "The parameter tree")
    _write_configs(Path(path), module_config, scheduler_config)
    save_file(tensors, Path(path) / "unet" / WEIGHTS_FILE, metadata={"format": "pt"})


def write_configs(source: str | Path, path: str | Path) -> None:
    """Copy a model's configurations without its weights, so that ``load_denoiser(path, weights=False)`` works.

    Args:
        source: what ``load_denoiser`` takes.
        path: the folder to write, made if need be.

    Raises:
        InputError: the source can't be loaded.
    """
    load_denoiser(source, weights=False)
    layout = _locate(source)
    _write_configs(Path(path), _read_unet_config(layout.unet), _read_json(layout.scheduler))


def _write_configs(path: Path, module_config: Mapping[str, Any], scheduler_config: Mapping[str, Any]) -> None:
    schedule_from_config(scheduler_config)
    scheduler_class = scheduler_config.get("_class_name", "DDIMScheduler")
    index = {
        "_class_name": "DDPMPipeline" if scheduler_class == "DDPMScheduler" else "DDIMPipeline",
        "scheduler": ["diffusers", scheduler_class],
        "unet": ["diffusers", UNET_CLASS],
    }
    files = {
        "model_index.json": index,
        "unet/config.json": {"_class_name": UNET_CLASS} | complete_config(module_config),
        "scheduler/scheduler_config.json": {"_class_name": scheduler_class} | dict(scheduler_config),
    }
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(json.dumps(content, indent=2) + "\n")


def _locate(name_or_path: str | Path) -> _Layout:
    """Find the UNet's folder and the scheduler's file of a bundled name or a folder."""
    bundled = str(name_or_path) in bundled_models()
    root = _BUNDLED / str(name_or_path) if bundled else Path(name_or_path)
    if not root.is_dir():
        raise InputError(
            f"There is neither a bundled model nor a folder called {str(name_or_path)!r}; bundled are "
            f"{', '.join(bundled_models())}, and a folder needs diffusers' config.json and safetensors."
        )
    unet = root / "unet" if (root / "unet").is_dir() else root
    # The first models on the Hub have all their files side by side; a pipeline's unet/ may also be named by itself.
    candidates = (root / "scheduler" / "scheduler_config.json", root / "scheduler_config.json")
    beside = root.resolve().parent / "scheduler" / "scheduler_config.json"
    found = [file for file in (*candidates, beside) if file.is_file()]
    if not found:
        raise InputError(
            f"There is no scheduler_config.json in or beside {root}, and without it the noise schedule is unknown; add "
            "the model's scheduler folder, or build jaxdq.Denoiser(module, params, schedule, shape) by hand."
        )
    whole = root.resolve().parent if found[0] == beside else root.resolve()
    return _Layout(whole.name, unet, found[0])


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, or raise InputError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; point to a folder in diffusers' layout, which has it.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); download the file again or mend it.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a JSON {type(content).__name__}, not an object; download the file again.")
    return content


def _read_unet_config(folder: Path) -> dict[str, Any]:
    config = _read_json(folder / "config.json")
    class_name = config.get("_class_name", UNET_CLASS)
    if class_name != UNET_CLASS:
        raise InputError(
            f"{folder / 'config.json'} describes a {class_name}; jaxdq reads {UNET_CLASS} folders; write another "
            "network in flax and build jaxdq.Denoiser(module, params, schedule, shape) by hand."
        )
    return config


def _image_shape(config: Mapping[str, Any], folder: Path) -> tuple[int, int, int]:
    """Return (H, W, C) of the images that the network draws."""
    complete = complete_config(config)
    size, channels = complete["sample_size"], complete["in_channels"]
    if size is None:
        raise InputError(f"{folder / 'config.json'} leaves sample_size open; write the side of the images there.")
    if complete["out_channels"] != channels:
        raise InputError(
            f"{folder / 'config.json'} has in_channels {channels} and out_channels {complete['out_channels']}; jaxdq "
            "samples networks that return as many channels as they take: choose a model without learned variance."
        )
    height, width = (size, size) if isinstance(size, int) else size
    return height, width, channels


def _conditions(module: UNet2D) -> tuple[Any, ...]:
    """Return what the network takes after (x, t): one row per class, or nothing."""
    if not module.has_classes:
        return ()
    if module.class_embed_type == "identity" or module.num_class_embeds is None:
        raise InputError(
            f"The UNet's class_embed_type is {module.class_embed_type!r}, and its labels are in no file; build "
            "jaxdq.Denoiser(module, params, schedule, shape, conditions=(labels,)) by hand."
        )
    return (jnp.arange(module.num_class_embeds),)


def _read_params(folder: Path, module: UNet2D) -> dict[str, Any]:
    file = _find_weights(folder)
    tensors = _read_shards(file) if file.suffix == ".json" else _read_safetensors(file)
    return params_from_torch(tensors, abstract_params(module), str(file))


def _find_weights(folder: Path) -> Path:
    for name in _WEIGHTS_FILES:
        if (folder / name).is_file():
            return folder / name
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise InputError(
            f"{folder} has its weights only as {', '.join(pickles)}, and jaxdq loads no pickle; convert them once, "
            f"where torch and diffusers are installed, with diffusers.{UNET_CLASS}.from_pretrained({str(folder)!r})"
            f".save_pretrained({str(folder)!r}), which writes {WEIGHTS_FILE}."
        )
    raise InputError(f"{folder} has no weights; put {WEIGHTS_FILE} there.")


def _read_safetensors(file: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(file)
    except FileNotFoundError:
        raise InputError(f"{file} does not exist; download all parts of the model.") from None
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{file} is damaged or not a safetensors file ({error}); download it again, with git-lfs if from git."
        ) from None


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    """Read the files that a sharded checkpoint's index lists."""
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has no weight_map; download the file again.")
    tensors: dict[str, np.ndarray] = {}
    for name in sorted(set(map(str, weight_map.values()))):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(f"{index} refers to {name!r}; expected the name of a safetensors file in the same folder.")
        tensors |= _read_safetensors(index.parent / name)
    return tensors
