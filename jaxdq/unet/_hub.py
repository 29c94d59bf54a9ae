"""Models on the Hugging Face Hub: their configurations and the one file of weights that is read, no more."""

import re
from pathlib import Path

from jaxdq._errors import InputError
from jaxdq.unet._files import WEIGHTS_FILES

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_CONFIGS = ("config.json", "unet/config.json", "scheduler_config.json", "scheduler/scheduler_config.json")
_SHARDS = "diffusion_pytorch_model*-of-*.safetensors"


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
        InputError: huggingface_hub is not installed, or the model is not to be had.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(
            f"There is no folder {hub_id!r}, and reading it from the Hugging Face Hub takes huggingface_hub, which is "
            "not installed; pip install huggingface_hub, or download the model and pass its folder."
        ) from None
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=list(_CONFIGS)))
        # A repository often holds the same weights in several precisions and formats; one of them is enough.
        for name in WEIGHTS_FILES if weights else ():
            patterns = [f"{place}{file}" for place in ("", "unet/") for file in (name, *_shards_of(name))]
            folder = Path(snapshot_download(hub_id, allow_patterns=patterns))
            if any((folder / place / name).is_file() for place in ("", "unet")):
                break
    except Exception as error:  # the Hub's client raises its own errors, its HTTP library's and the system's
        reason = next(iter(str(error).strip().splitlines()), "").rstrip(".:; ")
        raise InputError(
            f"There is no folder {hub_id!r}, and the Hugging Face Hub does not give it ({type(error).__name__}: "
            f"{reason}); check the name, the network and that you may read the model, or pass a folder."
        ) from None
    return folder


def _shards_of(name: str) -> tuple[str, ...]:
    return (_SHARDS,) if name.endswith(".json") else ()
