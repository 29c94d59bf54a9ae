"""metrics.json: what it holds, how it is written and read back."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxdq._common.errors import InputError
from jaxdq._common.folders import bytes_on_disk
from jaxdq._common.paths import local_path
from jaxdq._common.reading import read_json_values
from jaxdq.diffusion import Denoiser
from jaxdq.evaluation import FEATURES, Evaluation
from jaxdq.grid import stored_bytes
from jaxdq.linen import QuantizedParams
from jaxdq.metrics import mean_of_finite

METRICS = "metrics.json"
_NUMBER = (int, float, type(None))  # infinity is written as null
# What runs of earlier versions lack: checked where it is there.
_LATER: dict[str, Any] = {
    **dict.fromkeys(("image_psnr_median_db", "image_psnr_worst_db", "image_psnr_worst5_db"), _NUMBER),
    **dict.fromkeys(("noise_sqnr_pooled_db", "fd_other_noise", "image_ssim", "image_ssim_worst"), _NUMBER),
    "weight_bytes": {"disk": int},
}
# What a metrics.json must hold to be read back; more may stand in it.
_CONTRACT: dict[str, Any] = {
    **dict.fromkeys(("model", "recipe", "sampler", "backend"), str),
    **dict.fromkeys(("images", "weight_bits", "act_bits", "groups", "steps", "seed", "batch_size"), int),
    "eta": (int, float),
    **dict.fromkeys(("image_psnr_db", "fd_to_float", "fd_float_floor", "integer_mac_fraction"), _NUMBER),
    "noise_sqnr_db": {"mean": _NUMBER, "per_step": list},
    "weight_bytes": {"float": int, "quantized": int},
    "sites": {"total": int, "integer": int, "float": int},
    "seconds": dict,
    "versions": dict,
}


def measured(
    denoiser: Denoiser, qparams: QuantizedParams, evaluation: Evaluation, checkpoint: Path, features: str = ""
) -> dict[str, Any]:
    """What was found: how close the integer network comes, how small it is, and how much of it is integer.

    Args:
        denoiser: The float model.
        qparams: The quantized one.
        evaluation: The one beside the other.
        checkpoint: The folder that `jaxdq.save` wrote.
        features: What the Fréchet distances were computed in, in words; "" where no features were asked for.

    Returns:
        The measured fields of metrics.json, decibels where the name says `_db`, and what the evaluation's phases took.
    """
    sites = qparams.plan.sites
    num_integer = sum(site.is_integer for site in sites)
    return {
        "t": evaluation.t,
        "prediction_type": denoiser.schedule.prediction_type,
        "noise_sqnr_db": {"mean": mean_of_finite(evaluation.noise_sqnr_db), "per_step": evaluation.noise_sqnr_db},
        "noise_sqnr_pooled_db": evaluation.noise_sqnr_pooled_db,
        "image_psnr_db": evaluation.image_psnr_db,
        "image_psnr_median_db": evaluation.image_psnr_median_db,
        "image_psnr_worst5_db": evaluation.image_psnr_worst5_db,
        "image_psnr_worst_db": evaluation.image_psnr_worst_db,
        "image_ssim": np.mean(evaluation.ssim_per_image),
        "image_ssim_worst": np.min(evaluation.ssim_per_image),
        "image_space": evaluation.image_space,
        "fd_to_float": evaluation.fd_to_float,
        "fd_float_floor": evaluation.fd_float_floor,
        "fd_other_noise": evaluation.fd_other_noise,
        "fd_features": features or FEATURES.format(evaluation.image_space),
        **_distances(evaluation),
        "weight_bytes": {
            "float": stored_bytes(denoiser.params),
            "quantized": stored_bytes(qparams),
            "disk": bytes_on_disk(checkpoint),
        },
        "sites": {"total": len(sites), "integer": num_integer, "float": len(sites) - num_integer},
        "integer_mac_fraction": qparams.plan.integer_mac_fraction,
        "seconds": evaluation.seconds,
    }


def _distances(evaluation: Evaluation) -> dict[str, Any]:
    found, floor = evaluation.distance_per_image, evaluation.distance_floor
    if found is None or floor is None:
        return {}
    return {"lpips": np.mean(found), "lpips_worst": np.max(found), "lpips_float_floor": np.mean(floor)}


def to_json_values(value: Any) -> Any:
    """The same tree of plain Python values; NaN and infinity, which JSON does not have, become None.

    Example:
        >>> to_json_values({"per_step": np.array([1.5, np.inf])})
        {'per_step': [1.5, None]}
    """
    if isinstance(value, Mapping):
        return {str(key): to_json_values(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return to_json_values(value.tolist())
    if isinstance(value, list | tuple):
        return [to_json_values(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Writes FOLDER/metrics.json."""
    (folder / METRICS).write_text(json.dumps(metrics, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_metrics(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads FOLDER/metrics.json.

    Raises:
        InputError: No run there, or a file that is not what a run writes.
    """
    path = local_path(folder) / METRICS
    try:
        metrics = read_json_values(path)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"'{folder}' holds no {METRICS}, so it is no run of jaxdq; pass a folder that `jaxdq quantize` wrote."
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' can't be read ({error}); quantize again, or copy the run anew.") from None
    unmet = _unmet(metrics, _CONTRACT) or _unmet(metrics, _present(metrics, _LATER))
    if unmet:
        raise InputError(f"'{path}' has no usable {', '.join(unmet)}; quantize again, or copy the run anew.")
    return metrics


def _unmet(value: Any, contract: Any, name: str = "fields") -> list[str]:
    """The names of the fields that are absent or of another type than the contract says."""
    if not isinstance(contract, dict):
        is_flag = isinstance(value, bool)  # a bool is an int to Python, and to no reader of a number
        return [] if isinstance(value, contract) and not is_flag else [name]
    if not isinstance(value, dict):
        return [name]
    prefix = "" if name == "fields" else f"{name}."
    missing = object()
    return [path for key, part in contract.items() for path in _unmet(value.get(key, missing), part, f"{prefix}{key}")]


def _present(value: Mapping[str, Any], contract: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a contract whose fields are there."""
    return {
        key: _present(value[key], part) if isinstance(part, dict) else part
        for key, part in contract.items()
        if key in value
    }
