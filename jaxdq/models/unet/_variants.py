"""What files of weights are called: by precision or kind (`fp16`, `non_ema`), whole or in parts, old order or new."""

import re
from pathlib import Path
from typing import NamedTuple

from jaxdq._common.errors import InputError

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
WEIGHTS_FILES = (
    WEIGHTS_FILE,
    f"{WEIGHTS_FILE}.index.json",
    *(
        name
        for variant in ("fp16", "bf16")
        for name in (
            f"diffusion_pytorch_model.{variant}.safetensors",
            f"{WEIGHTS_FILE}.index.{variant}.json",
            f"{WEIGHTS_FILE}.{variant}.index.json",
        )
    ),
    "diffusion_flax_model.msgpack",
    "diffusion_pytorch_model*.safetensors*",  # any other variant
)
"""What to download of a UNet's weights, the first that there is."""

_STEM = r"^diffusion_pytorch_model(?:\.(?P<a>[\w.-]+?))?"
_WHOLE = re.compile(_STEM + r"\.safetensors$")
_PART = re.compile(_STEM + r"-(?P<i>\d+)-of-(?P<n>\d+)(?:\.(?P<b>[\w.-]+?))?\.safetensors$")
_INDEX = re.compile(_STEM + r"\.safetensors(?:\.(?P<b>[\w.-]+?))?\.index(?:\.(?P<c>[\w.-]+?))?\.json$")
_FLAX = re.compile(r"^diffusion_flax_model(?:\.(?P<a>[\w.-]+?))?\.msgpack$")
# The same weights in ever coarser numbers; then others, and last those that were not averaged over training.
_ORDER = ("", "fp32", "fp16", "bf16", "ema")
_FLAX_RANK, _OTHER_RANK, _LAST_RANK = len(_ORDER), len(_ORDER) + 1, len(_ORDER) + 2
_AS_WHOLE, _AS_INDEX, _AS_PARTS = range(3)  # of one variant, in this order
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_NO_WEIGHTS = (".json", ".md", ".txt", ".py")
_NAMES_SHOWN = 5


class WeightFiles(NamedTuple):
    """Where the weights of a network lie.

    Attributes:
        file: What to call them: the file, the index of several, or the first of several that have no index.
        parts: The files without an index; empty where there is one.
    """

    file: Path
    parts: tuple[Path, ...] = ()


def find_weights(folder: Path, class_name: str) -> WeightFiles:
    """Choose among the files of weights in a folder: the finest numbers, and those that the network samples with.

    Args:
        folder: Folder of one network.
        class_name: Diffusers' name of the network, for the advice how to convert a pickle.

    Raises:
        InputError: There is no file that is read; those that there are are named.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    ranked = sorted((*rank, name) for name in names if (rank := _rank(name)) is not None)
    if not ranked:
        raise InputError(_none_is_read(folder, names, class_name))
    _, form, first = ranked[0]
    match = _PART.match(first)
    if match is None or form != _AS_PARTS:
        return WeightFiles(folder / first)
    same = [other for name in names if (other := _PART.match(name)) and _key(other) == _key(match)]
    present, count = {int(other["i"]) for other in same}, int(match["n"])
    absent = sorted(set(range(1, count + 1)) - present)
    if absent:
        raise InputError(
            f"{folder} has {len(present)} of {count} parts of {first}, and lacks part {', '.join(map(str, absent[:8]))}"
            "; download all parts of the model."
        )
    return WeightFiles(folder / first, tuple(folder / other.string for other in same))


def _rank(name: str) -> tuple[int, int] | None:
    """How late a file is taken: by its variant, and by its form; None for what is not read."""
    # A part's name could be a variant's too, so parts are looked for first.
    for form, pattern in ((_AS_PARTS, _PART), (_AS_INDEX, _INDEX), (_AS_WHOLE, _WHOLE), (_AS_WHOLE, _FLAX)):
        match = pattern.match(name)
        if match is not None:
            variant = _variant(match)
            if "non_ema" in variant:
                return _LAST_RANK, form
            if pattern is _FLAX:
                return _FLAX_RANK, form
            return (_ORDER.index(variant) if variant in _ORDER else _OTHER_RANK), form
    return None


def _variant(match: re.Match[str]) -> str:
    return ".".join(word for key, word in match.groupdict().items() if key in "abc" and word)


def _key(match: re.Match[str]) -> tuple[str, str]:
    return _variant(match), match["n"]


def _none_is_read(folder: Path, names: list[str], class_name: str) -> str:
    """Say what there is in a folder without weights that are read."""
    others = [name for name in names if Path(name).suffix not in _NO_WEIGHTS]
    pickles = [name for name in others if Path(name).suffix in _PICKLES]
    if pickles and pickles == others:
        return (
            f"{folder} has its weights only as {_some(pickles)}, and jaxdq loads no pickle; convert them once, "
            f"where torch and diffusers are installed, with diffusers.{class_name}.from_pretrained({str(folder)!r})"
            f".save_pretrained({str(folder)!r}), which writes {WEIGHTS_FILE}."
        )
    if not others:
        return f"{folder} has no weights; put {WEIGHTS_FILE} there."
    return (
        f"{folder} has no weights that jaxdq reads: found {_some(others)}, none of which is read; expected "
        f"{WEIGHTS_FILE}, or its parts with their index; rename or convert what there is."
    )


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:_NAMES_SHOWN])}{', ...' if len(names) > _NAMES_SHOWN else ''}"
