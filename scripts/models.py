"""The models that scripts take by `--model`: a bundled name, a folder in diffusers' layout, or one of train_dit.py."""

from pathlib import Path

import dit

import jaxdq

HELP = "a bundled name, a folder in diffusers' layout, or one that train_dit.py wrote"


def load(name: str | Path) -> jaxdq.Denoiser:
    """Load a model with its weights.

    Args:
        name: `digits`, what else `jaxdq.load_denoiser` takes, or a folder of a DiT.

    Raises:
        InputError: There is no such model, or its files are damaged.
    """
    return dit.load(name) if dit.is_dit(name) else jaxdq.load_denoiser(name)
