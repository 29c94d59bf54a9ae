"""A quantized network as a tree of plain arrays and a plan of plain values, and back: what a checkpoint holds."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq.grid import QParams, QTensor, Scheme, pack, unpack
from jaxdq.linen import (
    Acts,
    Correction,
    Leaf,
    Parts,
    Plan,
    QuantizedParams,
    Site,
    SitePlan,
    Switch,
    TimeTable,
    kernel_at,
    leaves_of,
    with_one_partition,
)
from jaxdq.linen._tables import TABLE

_ACTS = ("scale", "zero_point", "group_of_t")


def plan_values(qparams: Any) -> Any:
    """The plan of a network in values of JSON; of a `Switch` those of both, of a float network None."""
    if isinstance(qparams, Switch):
        return {"choices": [plan_values(choice) for choice in qparams.choices]}
    return dataclasses.asdict(qparams.plan) if isinstance(qparams, QuantizedParams) else None


def plan_from(values: Any) -> Any:
    """What `plan_values` made them of: a plan; or a tuple of two, of which the second may be None.

    Raises:
        KeyError, TypeError, ValueError: Values that it did not make.
    """
    if "choices" in values:
        first, second = values["choices"]
        return _plan_from(first), None if second is None else _plan_from(second)
    return _plan_from(values)


def to_arrays(qparams: Any) -> dict[str, Any]:
    """The arrays of a network by name, codes in packed bytes; of a `Switch`, what both networks hold once."""
    if not isinstance(qparams, Switch):
        return _to_arrays(qparams, {})
    known: dict[Any, Any] = {}
    first, second = (_to_arrays(choice, known) for choice in qparams.choices)
    return {
        "choices": {"0": first, "1": _without_shared(second, first)},
        "choice_of_t": np.asarray(qparams.choice_of_t),
    }


def _to_arrays(qparams: Any, known: dict[Any, Any]) -> dict[str, Any]:
    """The arrays of one network; `known` is what became of arrays that were met before, by their identity."""

    def kept(leaf: Any) -> Any:
        key = tuple(map(id, jax.tree.leaves(leaf)))
        if key not in known:
            known[key] = stored(leaf)
        return known[key]

    def stored(leaf: Any) -> Any:
        if isinstance(leaf, Parts):
            parts = {str(index): stored(part) for index, part in enumerate(leaf.parts)}
            beside = {"input_scale": leaf.input_scale, "low_rank": leaf.low_rank}
            present = {name: value for name, value in beside.items() if value is not None}
            return {"parts": parts, **jax.tree.map(np.asarray, present)}
        if isinstance(leaf, TimeTable):
            return {"t": np.asarray(leaf.t), "rows": np.asarray(leaf.rows)}
        if not isinstance(leaf, QTensor):
            return np.asarray(leaf)
        codes = _packed(np.asarray(leaf.qvalue.astype(jnp.int8)), leaf.scheme.bits)
        zero_point = leaf.qparams.zero_point
        extra = {} if zero_point is None else {"zero_point": np.asarray(zero_point)}
        return {**codes, "scale": np.asarray(leaf.qparams.scale), **extra}

    if not isinstance(qparams, QuantizedParams):
        return {"params": jax.tree.map(kept, qparams)}
    params = jax.tree.map(kept, qparams.params, is_leaf=lambda leaf: isinstance(leaf, QTensor | Parts | TimeTable))
    variables = {"variables": jax.tree.map(kept, dict(qparams.variables))} if qparams.variables else {}
    tables = {name: kept(getattr(qparams.acts, name)) for name in _ACTS}
    acts = {name: table for name, table in tables.items() if table.size}  # Orbax takes no empty arrays
    correction = {} if qparams.correction is None else {"correction": jax.tree.map(kept, _present(qparams.correction))}
    return {"params": params, "acts": acts, **variables, **correction}


def _without_shared(tree: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """A tree of arrays without what another holds at the same place: saved once."""
    out = {}
    for key, node in tree.items():
        other: Any = first.get(key)
        if _is_inner(node) and _is_inner(other) and set(node) == set(other):
            node = _without_shared(node, other) or None
        elif node is other:
            node = None
        if node is not None:
            out[key] = node
    return out


def _with_shared(tree: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `_without_shared`."""
    filled = {
        key: _with_shared(node, first[key]) if _is_inner(node) and _is_inner(first.get(key)) else node
        for key, node in tree.items()
    }
    return {**first, **filled} if set(tree) <= set(first) else filled


def _is_inner(node: Any) -> bool:
    """Whether a node holds other nodes, and is no single array in parts."""
    return isinstance(node, dict) and not {"codes", "parts", TABLE} & set(node)


def _packed(codes: np.ndarray, bits: int) -> dict[str, np.ndarray]:
    """Codes in packed bytes; where that is less, those that are not 0 and a bit for each code that says which."""
    kept = codes != 0
    count = np.count_nonzero(kept)
    if not count or codes.size + bits * count >= bits * codes.size:
        return {"codes": pack(codes, bits)}
    return {"codes": pack(codes[kept], bits), "mask": np.packbits(kept)}


def _unpacked(stored: dict[str, np.ndarray], bits: int, shape: tuple[int, ...]) -> np.ndarray:
    if "mask" not in stored:
        return unpack(stored["codes"], bits, shape)
    kept = np.unpackbits(np.asarray(stored["mask"]), count=math.prod(shape)).astype(bool)
    codes = np.zeros(len(kept), np.int8)
    codes[kept] = unpack(stored["codes"], bits, (int(kept.sum()),))
    return codes.reshape(shape)


def _present(correction: Correction) -> dict[str, jax.Array]:
    fields = ((field.name, getattr(correction, field.name)) for field in dataclasses.fields(correction))
    return {name: value for name, value in fields if value is not None}


def from_arrays(tree: dict[str, Any], plan: Any) -> Any:
    """The network that `to_arrays` took apart, bit for bit.

    Args:
        tree: The arrays.
        plan: Result of `plan_from`.
    """
    if not isinstance(plan, tuple):
        return _from_arrays(tree, plan, {})
    known: dict[int, Any] = {}
    arrays = tree["choices"]["0"], _with_shared(tree["choices"]["1"], tree["choices"]["0"])
    first, second = (_from_arrays(choice, one, known) for choice, one in zip(arrays, plan, strict=True))
    return Switch((first, second), jnp.asarray(tree["choice_of_t"]))


def _from_arrays(tree: dict[str, Any], plan: Plan | None, known: dict[int, Any]) -> Any:
    """One network; `known` is what became of nodes that were met before, by their identity."""

    def kept(node: Any, restored: Callable[[Any], Any] = jnp.asarray) -> Any:
        if id(node) not in known:
            known[id(node)] = restored(node), node  # which stays, so that its identity is nobody else's
        return known[id(node)][0]

    def walk(node: Any, path: str) -> Any:
        if not isinstance(node, dict):
            return kept(node)
        site = None if plan is None else plan.by_path.get(path)
        out = {}
        for key, value in node.items():
            if key == "kernel" and site is not None and site.weight is not None:
                out[key] = kept(value, functools.partial(_restored_kernel, site=site))
            elif key == TABLE:
                out[key] = kept(value, lambda value: TimeTable(**jax.tree.map(jnp.asarray, value)))
            else:
                out[key] = walk(value, f"{path}/{key}".lstrip("/"))
        return out

    params = walk(tree["params"], "")
    if plan is None:
        return params
    missing = [site.path for site in plan.sites if site.weight is not None and kernel_at(params, site.path) is None]
    if missing:
        raise KeyError(f"{missing[0]}/kernel")
    tables = tree["acts"] if "acts" in tree else _acts_before_format_3(tree)
    if not plan.columns:
        groups = int(np.max(tables["group_of_t"])) + 1
        tables = {**tables, "scale": np.ones((groups, 0), np.float32), "zero_point": np.zeros((groups, 0), np.int32)}
    scale, zero_point, group_of_t = (kept(tables[name]) for name in _ACTS)
    acts = Acts(scale, zero_point, group_of_t, plan.columns)
    variables = jax.tree.map(kept, tree.get("variables", {}))
    if not plan.leaves:  # of a checkpoint that did not say yet what the network's params are
        plan = dataclasses.replace(plan, leaves=leaves_of(params, {leaf.path for leaf in plan.kernels}))
    given = tree.get("correction")
    correction = None if given is None else Correction(**jax.tree.map(kept, given))
    return QuantizedParams(params, acts, plan, variables, correction)


def _acts_before_format_3(tree: dict[str, Any]) -> dict[str, np.ndarray]:
    """The three tables, which stood beside the params; where each array had groups of its own, in shared groups."""
    tables = tree["act_scale"], tree["act_zero_point"], tree["group_of_t"]
    return dict(zip(_ACTS, tables if tables[2].ndim == 1 else with_one_partition(*tables), strict=True))


def _restored_kernel(stored: dict[str, Any], site: SitePlan) -> QTensor | Parts:
    if "parts" not in stored:
        return _restored_tensor(stored, site, site.site.shape)
    axis, shape = site.input_axis, site.site.shape
    parts = tuple(
        _restored_tensor(stored["parts"][str(index)], site, (*shape[:axis], size, *shape[axis + 1 :]))
        for index, size in enumerate(site.parts)
    )
    low_rank = stored.get("low_rank")
    branch = None if low_rank is None else (jnp.asarray(low_rank[0]), jnp.asarray(low_rank[1]))
    scale = stored.get("input_scale")
    return Parts(parts, None if scale is None else jnp.asarray(scale), branch)


def _restored_tensor(stored: dict[str, np.ndarray], site: SitePlan, shape: tuple[int, ...]) -> QTensor:
    assert site.weight is not None
    codes = _unpacked(stored, site.weight.bits, shape)
    zero_point = jnp.asarray(stored["zero_point"]) if "zero_point" in stored else None
    tensor = QTensor(
        jnp.asarray(codes).astype(site.weight.storage_dtype),
        QParams(jnp.asarray(stored["scale"]), zero_point),
        site.weight,
    )
    return site.with_code_sum(tensor)


def _plan_from(data: dict[str, Any]) -> Plan:
    def scheme(fields: dict[str, Any] | None) -> Scheme | None:
        if fields is None:
            return None
        axis = fields["channel_axis"]
        return Scheme(**{**fields, "channel_axis": tuple(axis) if isinstance(axis, list) else axis})

    def site(fields: dict[str, Any]) -> Site:
        axes: dict[str, Any] = {
            name: tuple(fields[name]) for name in ("shape", "channel_axes", "stacked", "channels") if name in fields
        }
        return Site(**{**fields, **axes})

    sites = (
        SitePlan(
            site(row["site"]),
            scheme(row["weight"]),
            scheme(row["act"]),
            row["reason"],
            tuple(row.get("parts", ())),
            row.get("has_own_inputs", False),
            row.get("sparsity", ""),
        )
        for row in data["sites"]
    )
    unplanned = tuple((path, tuple(shape), reason) for path, shape, reason in data["unplanned"])
    leaves = tuple(Leaf(path, tuple(shape), *rest) for path, shape, *rest in data.get("leaves", ()))
    return Plan(tuple(sites), unplanned, data.get("dtype", ""), leaves)
