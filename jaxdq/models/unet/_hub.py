"""Models on the Hugging Face Hub: the configurations, and one file of weights for each part that is read."""

import contextlib
import contextvars
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxdq._common.errors import InputError, described
from jaxdq.models.unet._variants import WEIGHTS_FILES

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_CONFIGS = (
    *("config.json", "unet/config.json", "scheduler_config.json", "scheduler/scheduler_config.json"),
    "transformer/config.json",  # to say what a pipeline without a UNet is
)
_ENCODER_WEIGHTS = ("model.safetensors", "flax_model.msgpack")
_SHARDS = "diffusion_pytorch_model*-of-*.safetensors"


_CACHE_ONLY: contextvars.ContextVar[bool] = contextvars.ContextVar("cache only", default=False)


@contextlib.contextmanager
def without_network() -> Iterator[None]:
    """Within, models of the Hub come from its cache on this machine: what someone else's file names is not fetched."""
    token = _CACHE_ONLY.set(True)
    try:
        yield
    finally:
        _CACHE_ONLY.reset(token)


def is_hub_id(name: str) -> bool:
    """Whether a name has the form ``organisation/model`` of the Hub.

    Example:
        >>> is_hub_id("CompVis/stable-diffusion-v1-4"), is_hub_id("./models/mine"), is_hub_id("digits")
        (True, False, False)
    """
    return _HUB_ID.match(name) is not None and not name.startswith(".")


def download(hub_id: str, *, weights: bool) -> Path:
    """Download what ``load_denoiser`` reads of a model on the Hub, or find it in the Hub's cache.

    Args:
        hub_id: ``organisation/model``.
        weights: False leaves the weights there.

    Returns:
        The folder that holds the files.

    Raises:
        InputError: Huggingface_hub is not installed, or the model is not to be had.
    """
    folder = _fetch(hub_id, _CONFIGS)
    if weights:
        _fetch_first(hub_id, ("", "unet/"), WEIGHTS_FILES)
    return folder


def download_parts(hub_id: str, parts: Sequence[str]) -> Path:
    """Download other parts of a pipeline: the configurations in their folders, and one file of weights of each.

    Args:
        hub_id: ``organisation/model``.
        parts: Such as "text_encoder", "tokenizer" and "vae"; those that the model does not have are passed over.

    Returns:
        The folder that holds the parts' folders.

    Raises:
        InputError: As in ``download``.
    """
    folder = _fetch(hub_id, [f"{part}/{file}" for part in parts for file in ("*.json", "*.txt")])
    for part in parts:
        if (folder / part / "config.json").is_file():  # a tokenizer has no weights, and no config.json
            _fetch_first(hub_id, (f"{part}/",), (*_ENCODER_WEIGHTS, *WEIGHTS_FILES))
    return folder


def _fetch_first(hub_id: str, places: Sequence[str], names: Sequence[str]) -> None:
    """Download the first file that there is: a model often has its weights in several precisions and formats."""
    for name in names:
        folder = _fetch(hub_id, [f"{place}{file}" for place in places for file in (name, *_shards_of(name))])
        if any((folder / place / name).is_file() for place in places):
            return


def _fetch(hub_id: str, patterns: Sequence[str]) -> Path:
    """Download the files of a model whose names match; return the folder that they are in."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(
            f"There is no folder {hub_id!r}, and reading it from the Hugging Face Hub takes huggingface_hub, which is "
            "not installed; pip install huggingface_hub, or download the model and pass its folder."
        ) from None
    cached: dict[str, Any] = {"local_files_only": True} if _CACHE_ONLY.get() else {}
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns), **cached))
    except Exception as error:  # the Hub's client raises its own errors, its HTTP library's and the system's
        if cached:
            raise InputError(
                f"the run names the model {hub_id!r}, which is neither a folder nor in the Hub's cache, and what a run "
                f"names is not fetched from the network; name it yourself with --model."
            ) from None
        raise InputError(
            f"There is no folder {hub_id!r}, and the Hugging Face Hub does not give it ("
            f"{described(error)}); check the name, the network and that you may read the model, or pass a folder."
        ) from None


def _shards_of(name: str) -> tuple[str, ...]:
    return (_SHARDS,) if name.endswith(".json") else ()
