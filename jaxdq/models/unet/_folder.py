"""Models on disk in diffusers' layout: ``model_index.json``, ``unet/`` and ``scheduler/``.

Other folders of a pipeline, such as a text encoder's or a VAE's, are passed over: what they compute stays the caller's.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.numpy import save_file

from jaxdq._common.checks import shown
from jaxdq._common.errors import InputError
from jaxdq._common.paths import local_path
from jaxdq.diffusion import Denoiser, default_sampler, schedule_from_config, with_precondition, wrap
from jaxdq.models.unet._build import MODEL_CLASSES, ModelClass, UNet, abstract_params
from jaxdq.models.unet._controlnet import Controlled, ControlNet
from jaxdq.models.unet._drawn import condition_names, default_rows, drawn_by
from jaxdq.models.unet._files import read_json, read_params
from jaxdq.models.unet._hub import download, download_parts, is_hub_id
from jaxdq.models.unet._unet2d_condition import UNet2DCondition
from jaxdq.models.unet._variants import WEIGHTS_FILE
from jaxdq.models.unet._weights import params_from_torch, torch_from_params

UNET_CLASS = "UNet2DModel"
_BUNDLED = Path(__file__).parents[1] / "bundled"
_OTHER_NETWORKS = ("controlnet", "decoder", "prior", "transformer", "transformer_2")  # what a pipeline may have instead
_NAMES_SHOWN = 8


class Layout(NamedTuple):
    """Where one model lies: its name, its whole folder, that of its UNet, and its scheduler_config.json."""

    name: str
    root: Path
    unet: Path
    scheduler: Path


def bundled_models() -> tuple[str, ...]:
    """Return the names of the models that come with jaxdq, for ``load_denoiser``."""
    return tuple(sorted(path.parent.name for path in _BUNDLED.glob("*/model_index.json")))


def load_denoiser(
    name_or_path: str | Path,
    *,
    weights: bool = True,
    conditions: Sequence[Any] | None = None,
    controlnet: str | Path | None = None,
    conditioning_scale: float = 1.0,
) -> Denoiser:
    """Load a diffusion model that comes with jaxdq, from a folder in diffusers' layout, or from the Hugging Face Hub.

    Args:
        name_or_path: One of ``bundled_models()``, or a folder with ``unet/`` and ``scheduler/``, or a folder that has
            the UNet's config.json itself and a scheduler_config.json in it or in ``../scheduler``, or a Hub id
            ``organisation/model`` (with huggingface_hub installed).
        weights: False leaves the weights on disk: the parameters are ``jax.ShapeDtypeStruct``, and so are the
            conditions of a text-conditional model unless they are given.
        conditions: What the network takes after (x, t), each with a leading axis of rows. For a text-conditional model
            ``(encoder_hidden_states: float[P, M, K],)``, and for SDXL ``(encoder_hidden_states, text_embeds: float[P,
            E], time_ids: float[P, 6])``; where the network takes more channels than it draws, as for inpainting, the
            first is ``joined_channels: float[P, H, W, C]``, and with a ControlNet the last is its image. None cycles
            through the classes of a class-conditional model.
        controlnet: Folder of a ``ControlNetModel`` that controls the UNet: one network, quantized together.
        conditioning_scale: Factor of what the ControlNet adds.

    Returns:
        The denoiser. Its shape is that of the arrays the network draws: latents, where the pipeline has a VAE. Its
        ``condition_names`` say what the conditions are, and its ``notes`` what of the network is not used.

    Raises:
        InputError: There is no such model, a file is absent, damaged or does not fit the others, the model is of a
            kind that jaxdq does not support, or conditions are needed; the sentence names the file or the field.

    Example:
        >>> load_denoiser("digits").shape
        (16, 16, 1)
    """
    layout = locate(name_or_path, weights=weights)
    model_class, config = read_unet_config(layout.unet)
    scheduler = read_json(layout.scheduler)
    schedule = schedule_from_config(scheduler)
    module: UNet | ControlNet | Controlled = model_class.build(config)
    if isinstance(module, ControlNet) and (weights or controlnet is not None):
        raise InputError(
            f"{layout.unet} has a ControlNet, which draws nothing by itself; pass the folder of its UNet, and this one "
            "as load_denoiser(..., controlnet=folder)."
        )
    complete = model_class.complete(config)
    # What a ControlNet returns is added to a UNet's, which draws as many channels as it takes.
    drawn = drawn_by(
        complete | {"out_channels": module.x_channels} if isinstance(module, ControlNet) else complete,
        module.x_channels,
        scheduler,
    )
    if controlnet is not None:
        if not isinstance(module, UNet2DCondition):
            raise InputError(
                f"{layout.unet} has a {model_class.class_name}, which no ControlNet controls; leave it out."
            )
        if isinstance(conditioning_scale, bool) or not isinstance(conditioning_scale, int | float):
            raise InputError(f"conditioning_scale is {shown(conditioning_scale)}; pass a number, 1.0 as a rule.")
        module = Controlled(module, _controlnet_in(local_path(controlnet)), float(conditioning_scale))
    rows = default_rows(module, drawn, weights=weights) if conditions is None else tuple(conditions)
    names = condition_names(module, drawn)
    params = abstract_params(module)
    if weights and controlnet is not None:
        params = {
            "unet": read_params(layout.unet, params["unet"], model_class.class_name),
            "controlnet": read_params(local_path(controlnet), params["controlnet"], "ControlNetModel"),
        }
    elif weights:
        params = read_params(layout.unet, params, model_class.class_name)
    network: Any = module
    if drawn.joined or drawn.extra:
        network = wrap(module, joined=int(drawn.joined > 0), channels=drawn.shape[-1] if drawn.extra else None)
    network = with_precondition(network, scheduler)
    sampler, notes = default_sampler(scheduler), drawn.notes
    return Denoiser(
        network, params, schedule, drawn.shape, rows, layout.name, sampler=sampler, notes=notes, condition_names=names
    )


def _controlnet_in(folder: Path) -> ControlNet:
    """The ControlNet that a folder's config.json describes."""
    model_class, config = read_unet_config(folder)
    module = model_class.build(config)
    if not isinstance(module, ControlNet):
        raise InputError(
            f"{folder} has a {model_class.class_name}; pass the folder of a ControlNetModel as controlnet."
        )
    return module


def load_unet_folder(path: str | Path) -> tuple[UNet | ControlNet, dict[str, Any], dict[str, Any]]:
    """Load a UNet alone from the folder that has its config.json and its weights.

    Args:
        path: The folder, for example the ``unet`` folder of a pipeline.

    Returns:
        The module, its parameters (float32) and the configuration with every field filled in.

    Raises:
        InputError: A file is absent, damaged or does not fit the others, or the model is of an unsupported kind.
    """
    path = local_path(path)
    model_class, config = read_unet_config(path)
    module = model_class.build(config)
    return module, read_params(path, abstract_params(module), model_class.class_name), model_class.complete(config)


def save_unet_folder(
    path: str | Path, module_config: Mapping[str, Any], params: Any, scheduler_config: Mapping[str, Any]
) -> None:
    """Write a model as diffusers does, so that ``load_denoiser`` and diffusers' PyTorch classes can read it.

    Args:
        path: The folder to write, made if need be: model_index.json, ``unet/`` and ``scheduler/``.
        module_config: The fields of ``UNet2DModel``, or of the class that its ``_class_name`` says.
        params: The parameter tree of ``unet2d_from_config(module_config)``, or of its sibling.
        scheduler_config: The contents of scheduler_config.json, ``_class_name`` included.

    Raises:
        InputError: A configuration is not supported, or the parameters do not fit it; nothing is written then.
    """
    path = local_path(path)
    tensors = torch_from_params(params)
    params_from_torch(
        tensors, abstract_params(_model_class(module_config, path).build(module_config)), "The parameter tree"
    )
    _write_configs(path, module_config, scheduler_config)
    save_file(tensors, path / "unet" / WEIGHTS_FILE, metadata={"format": "pt"})


def write_configs(source: str | Path, path: str | Path) -> None:
    """Copy a model's configurations without its weights, so that ``load_denoiser(path, weights=False)`` works.

    Args:
        source: What ``load_denoiser`` takes.
        path: The folder to write, made if need be.

    Raises:
        InputError: The source can't be loaded.
    """
    load_denoiser(source, weights=False)
    layout = locate(source, weights=False)
    _write_configs(Path(path), read_unet_config(layout.unet)[1], read_json(layout.scheduler))


def _write_configs(path: Path, module_config: Mapping[str, Any], scheduler_config: Mapping[str, Any]) -> None:
    schedule_from_config(scheduler_config)
    model_class = _model_class(module_config, path)
    scheduler_class = scheduler_config.get("_class_name", "DDIMScheduler")
    files = {
        # The name that came is kept: a Flax class computes a little differently.
        "unet/config.json": {"_class_name": module_config.get("_class_name", UNET_CLASS)}
        | model_class.complete(module_config),
        "scheduler/scheduler_config.json": {"_class_name": scheduler_class} | dict(scheduler_config),
    }
    if model_class.class_name == UNET_CLASS:  # a text-to-image pipeline has parts that are not here, so no index for it
        files["model_index.json"] = {
            "_class_name": "DDPMPipeline" if scheduler_class == "DDPMScheduler" else "DDIMPipeline",
            "scheduler": ["diffusers", scheduler_class],
            "unet": ["diffusers", UNET_CLASS],
        }
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(json.dumps(content, indent=2) + "\n")


def locate(name_or_path: str | Path, *, weights: bool) -> Layout:
    """Find the UNet's folder and the scheduler's file of a bundled name, a folder or a Hub id."""
    name = str(name_or_path)
    if name in bundled_models():
        root = _BUNDLED / name
    elif local_path(name).is_dir():
        root = local_path(name)
    elif Path(name).is_file():
        raise InputError(_about_file(Path(name)))
    elif is_hub_id(name):
        return _layout(download(name, weights=weights), name.rpartition("/")[2])
    else:
        raise InputError(
            f"There is neither a bundled model nor a folder called {name!r}; bundled are "
            f"{', '.join(bundled_models())}, and a folder needs diffusers' config.json and safetensors."
        )
    return _layout(root)


def _layout(root: Path, name: str = "") -> Layout:
    """Find the UNet's folder and the scheduler's file of a folder; the name is the folder's unless it is given."""
    unet = root / "unet" if (root / "unet").is_dir() else root
    if not (unet / "config.json").is_file():
        raise InputError(_about_folder(root, unet))
    read_unet_config(unet)  # of another network it is of no use to say that its scheduler is missing
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
    return Layout(name or whole.name, whole, unet, found[0])


def _about_file(file: Path) -> str:
    """Say what to do with a file that was given in place of a folder."""
    parent = file.resolve().parent
    if (parent / "config.json").is_file() or file.name == "model_index.json":
        return f"{file} is a file, and jaxdq reads the folder that it is in; pass {parent}."
    return (
        f"{file} is a file, and jaxdq reads folders in diffusers' layout; convert a single-file checkpoint once, where "
        "torch and diffusers are installed, with its pipeline's from_single_file(file).save_pretrained(folder)."
    )


def _about_folder(root: Path, unet: Path) -> str:
    """Say what a folder is that has no UNet's config.json."""
    index = read_json(root / "model_index.json") if (root / "model_index.json").is_file() else {}
    name = index.get("_class_name")
    pipeline = f"{root} is the folder of a {name}" if isinstance(name, str) else f"{root} has no unet folder"
    networks = [part for part in sorted(root.iterdir()) if part.name in _OTHER_NETWORKS and part.is_dir()]
    described = []
    for part in networks:
        file = part / "config.json"
        class_name = read_json(file).get("_class_name", "class not named") if file.is_file() else "no config.json"
        described.append(f"{part.name} ({class_name})")
    if described and unet == root:
        return (
            f"{pipeline}: its network is in {', '.join(described)}, which is no UNet; jaxdq reads pipelines with "
            f"{' or '.join(MODEL_CLASSES)}: write the network in flax, build jaxdq.Denoiser(module, params, schedule, "
            "shape) by hand."
        )
    held = sorted(path.name for path in unet.iterdir())
    shown = f"{', '.join(held[:_NAMES_SHOWN])}{', ...' if len(held) > _NAMES_SHOWN else ''}" or "nothing"
    return (
        f"{unet / 'config.json'} does not exist; jaxdq reads folders in diffusers' layout, which have it beside the "
        f"UNet's weights, and found {shown}."
    )


def model_folder(name_or_path: str | Path, parts: Sequence[str]) -> Path:
    """Find a model's whole folder, with those of these parts of its pipeline that it has.

    Args:
        name_or_path: What ``load_denoiser`` takes.
        parts: Names of folders beside ``unet``, such as "vae"; a Hub model's are downloaded, or found in the cache.

    Returns:
        The folder; it need not have the parts.

    Raises:
        InputError: There is no such model.
    """
    name = str(name_or_path)
    if name not in bundled_models() and not local_path(name).is_dir() and is_hub_id(name):
        return download_parts(name, parts)
    return locate(name, weights=False).root


def read_unet_config(folder: Path) -> tuple[ModelClass, dict[str, Any]]:
    """Read the configuration of the UNet in a folder, and find which of our model classes it names."""
    if folder.is_file():
        raise InputError(_about_file(folder))
    config = read_json(folder / "config.json")
    return _model_class(config, folder), config


def _model_class(config: Mapping[str, Any], folder: str | Path) -> ModelClass:
    class_name = config.get("_class_name", UNET_CLASS)
    if class_name not in MODEL_CLASSES:
        raise InputError(
            f"{Path(folder) / 'config.json'} describes a {class_name}; jaxdq reads {', '.join(MODEL_CLASSES)} folders; "
            "write another network in flax and build jaxdq.Denoiser(module, params, schedule, shape) by hand."
        )
    return MODEL_CLASSES[class_name]
