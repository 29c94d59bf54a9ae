"""Saving and restoring quantized networks: Orbax arrays, a manifest that explains them, checksums over all.

    PATH/arrays/         Orbax: the params tree with bit-packed codes in place of kernels, and the tables of scales
    PATH/manifest.json   format, versions, the plan, and the SHA-256 of every file in arrays/

A checkpoint is written beside its place and moved there when it is whole, so that a kill leaves the old one or none.
A remote one (gs://, s3://) is built on this machine and copied, the manifest last, so that part of one is none.

What a checkpoint of someone else can do, and what not. No code of it runs: arrays and JSON are read, never a pickle.
Every byte is held against checksums, which tell damage and not intent: they stand in the same folder, so that whoever
can write there can write them too. A network whose numbers were chosen to mislead is one that draws misleading images;
take checkpoints from people you would take a model from. Restoring one takes as much memory as its arrays.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxdq._common.errors import InputError, described
from jaxdq._common.folders import building, check_place, check_room, recover
from jaxdq._common.paths import at_hand, is_remote, path_of, reaching
from jaxdq._common.reading import read_json_values
from jaxdq.grid import stored_bytes
from jaxdq.linen import QuantizedParams, Switch, check_belongs
from jaxdq.linen._stored import from_arrays, plan_from, plan_values, to_arrays

# 1 knew no activations that share a grid; 2 no nn.scan, no variables, and kept the tables of grids beside the params.
FORMAT = 3
READABLE = range(1, FORMAT + 1)
MANIFEST = "manifest.json"
ARRAYS = "arrays"
STATE = "state"  # of a loop: Orbax wants a folder that does not exist yet
STATE_DIGESTS = "sha256.json"


def save(path: str | os.PathLike[str], qparams: QuantizedParams | Switch, *, overwrite: bool = False) -> None:
    """Saves a quantized network; codes take `bits` bits each on disk.

    Args:
        path: A folder that does not exist yet; a local one (`~` is the home), or a URI that `etils.epath` knows, such
            as gs://bucket/folder (with the package that reads it installed: gcsfs, s3fs, adlfs).
        qparams: What `quantize` returned, or a `Switch` of two such networks.
        overwrite: Whether an earlier checkpoint there is replaced (in one move, once the new one is whole).

    Raises:
        InputError: The folder exists and `overwrite` is not set, or qparams are not quantized.

    Example:
        `jaxdq.save("out/quantized", qparams)`
    """
    place = path_of(path)
    if not isinstance(qparams, QuantizedParams | Switch):
        raise InputError(f"save was given a {type(qparams).__name__}; pass what jaxdq.quantize returned.")
    check_can_save(place, overwrite=overwrite)
    check_room(place, stored_bytes(qparams))
    with building(place, last=MANIFEST) as folder:
        with _checkpointer() as checkpointer:
            checkpointer.save((folder / ARRAYS).absolute(), to_arrays(qparams))
        manifest = {
            "format": FORMAT,
            "versions": versions(),
            "plan": plan_values(qparams),
            "sha256": _checksums(folder / ARRAYS),
        }
        manifest["sha256_of_manifest"] = _digest(manifest)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def check_can_save(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuses a path that `save` would refuse, before there is anything to save; args and errors as there."""
    place = path_of(path)
    if not isinstance(overwrite, bool):
        raise InputError(f"overwrite is {overwrite!r:.60}; pass True or False.")
    check_place(place)
    with reaching(place):
        _check_free(place, overwrite=overwrite)


def _check_free(place: Any, *, overwrite: bool) -> None:
    """Refuses a place that is taken. Only a checkpoint is ever replaced: a mistyped path must not cost anyone files."""
    if not place.exists():
        return
    if not overwrite:
        raise InputError(f"'{place}' exists already; choose another folder, or pass overwrite=True to replace it.")
    if not place.is_dir() or not ((place / MANIFEST).exists() or not any(place.iterdir())):
        raise InputError(
            f"'{place}' holds something else than a checkpoint and is not replaced; choose another folder."
        )


def restore(path: str | os.PathLike[str]) -> Any:
    """Restores a quantized network: the bits that were saved.

    Needs nothing but jaxdq; to run it, `jaxdq.apply(module, qparams, x, t)` needs the module.

    Args:
        path: A folder written by `save`; as there, `~` and URIs are understood.

    Returns:
        QuantizedParams, or the `Switch` that was saved, on the default device.

    Raises:
        InputError: No checkpoint there, a file that is missing or damaged (every byte is checked), a format of another
            version.

    Example:
        `qparams = jaxdq.restore("out/quantized")`
    """
    place = path_of(path)
    with at_hand(place) as folder:
        manifest = _read_manifest(folder, place)
        found = _checksums(folder / ARRAYS)
        if not isinstance(manifest["sha256"], dict) or set(found) - set(manifest["sha256"]):
            raise InputError(
                f"'{place / MANIFEST}' does not list every file of '{place / ARRAYS}'; save the checkpoint again."
            )
        for name, digest in manifest["sha256"].items():
            if found.get(name) != digest:
                state = "is damaged" if name in found else "is missing"
                raise InputError(f"'{place / ARRAYS / name}' {state}; save the checkpoint again, or copy it anew.")
        try:
            plan = plan_from(manifest["plan"])
        except (KeyError, TypeError, ValueError):
            raise InputError(f"the plan in '{place / MANIFEST}' can't be read; save the checkpoint again.") from None
        try:
            qparams = from_arrays(_read_arrays((folder / ARRAYS).absolute()), plan)
        except (KeyError, TypeError) as error:
            raise InputError(
                f"the arrays in '{place}' are not those of its plan ({described(error)}); save the checkpoint again."
            ) from None
    for network in qparams.choices if isinstance(qparams, Switch) else (qparams,):
        if isinstance(network, QuantizedParams):
            remedy = "save the checkpoint again"
            check_belongs(network.params, network.plan, f"the arrays in '{place}'", remedy, quantized=True)
    return qparams


def versions() -> dict[str, str]:
    """Versions of what a result depends on: jaxdq, jax, flax and orbax."""
    from jaxdq._version import __version__

    return {"jaxdq": __version__, "jax": jax.__version__, "flax": flax.__version__, "orbax": ocp.__version__}


def _read_manifest(folder: Path, place: Any) -> dict[str, Any]:
    """The manifest in a folder, which has been brought from a place that the person knows."""
    if folder.is_file():
        raise InputError(f"'{place}' is a file; pass the folder that jaxdq.save wrote.")
    try:
        manifest = read_json_values(folder / MANIFEST)
        if not isinstance(manifest, dict):
            raise ValueError("it is no object of JSON")
        missing = {"format", "plan", "sha256", "sha256_of_manifest"} - set(manifest)
    except FileNotFoundError:
        raise InputError(
            f"'{place}' holds no {MANIFEST}, so it is no checkpoint of jaxdq; pass a folder that jaxdq.save wrote."
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"'{place / MANIFEST}' can't be read ({error}); save the checkpoint again.") from None
    if missing:
        raise InputError(f"'{place / MANIFEST}' lacks {sorted(missing)}; save the checkpoint again.")
    if manifest.pop("sha256_of_manifest") != _digest(manifest):
        raise InputError(f"'{place / MANIFEST}' is damaged; save the checkpoint again, or copy it anew.")
    kept = manifest["format"]
    if type(kept) is not int or kept not in READABLE:
        versions = manifest.get("versions")
        writer = versions.get("jaxdq", "unknown") if isinstance(versions, dict) else "unknown"
        raise InputError(
            f"'{place}' is of checkpoint format {kept!r} and this jaxdq reads {READABLE[0]} to {FORMAT}; "
            f"install the jaxdq that wrote it ({writer}), or quantize again."
        )
    return manifest


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _checksums(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file below the folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    out = {}
    for file in files:
        with file.open("rb") as stream:
            out[file.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return out


class State(NamedTuple):
    """What `save_state` kept.

    Attributes:
        update: How many updates it has seen.
        state: A pytree of arrays.
        history: Name -> array of any length: what a log says of the updates so far.
    """

    update: int
    state: Any
    history: dict[str, np.ndarray]


def save_state(
    path: str | os.PathLike[str], update: int, state: Any, history: Mapping[str, np.ndarray] = MappingProxyType({})
) -> None:
    """Keeps the state of a loop, so that it can go on after a kill: whole or not at all, every byte checked.

    Args:
        path: A folder; an earlier state there is replaced.
        update: How many updates the state has seen.
        state: A pytree of arrays.
        history: Name -> array that is not empty: what a log says of the updates so far.
    """
    leaves = {str(index): np.asarray(leaf) for index, leaf in enumerate(jax.tree.leaves(state))}
    tree = {"update": np.asarray(update), "leaves": leaves, **({"history": dict(history)} if history else {})}
    with building(path_of(path), as_one_file=True) as folder:
        with _checkpointer() as checkpointer:
            checkpointer.save((folder / STATE).absolute(), tree)
        (folder / STATE_DIGESTS).write_text(json.dumps(_checksums(folder / STATE)))


def has_state(path: str | os.PathLike[str]) -> bool:
    """Whether `save_state` kept a state there; one that a kill left beside its place is put back."""
    place = path_of(path)
    with reaching(place):
        if not is_remote(place):
            recover(place.resolve())
        return place.exists()


def restore_state(path: str | os.PathLike[str], like: Any) -> State:
    """What `save_state` kept, the state in the structure of `like`.

    Raises:
        InputError: A state that is damaged or of another loop.
    """
    try:
        with at_hand(path_of(path)) as folder:
            if _checksums(folder / STATE) != read_json_values(folder / STATE_DIGESTS):
                raise InputError(f"the state in '{path}' is damaged; remove the folder and run again.")
            tree = _read_arrays((folder / STATE).absolute())
        leaves = [jnp.asarray(tree["leaves"][str(index)]) for index in range(len(tree["leaves"]))]
        state = jax.tree.unflatten(jax.tree.structure(like), leaves)
        fits = jax.tree.map(lambda new, old: new.shape == old.shape and new.dtype == old.dtype, state, like)
    except InputError:
        raise
    except Exception as error:  # whatever orbax raises for a damaged folder, the remedy is one
        raise InputError(f"the state in '{path}' can't be read ({error}); remove the folder and run again.") from None
    if not all(jax.tree.leaves(fits)):
        raise InputError(f"the state in '{path}' belongs to another run; remove the folder and run again.")
    return State(int(tree["update"]), state, tree.get("history", {}))


def _checkpointer() -> ocp.Checkpointer:
    """One that works for this process alone, and waits for no other."""
    this = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=this, active_processes={this})
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _read_arrays(location: Path) -> Any:
    with _checkpointer() as checkpointer:
        metadata = checkpointer.metadata(location).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata)
        return checkpointer.restore(location, restore_args=as_numpy)
