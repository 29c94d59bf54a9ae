"""A quantized network as a tree of plain arrays and a plan of plain values, and back: what a checkpoint holds."""

import dataclasses
import math
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
    """The arrays of a network by name, codes in packed bytes."""
    if isinstance(qparams, Switch):
        choices = {str(index): to_arrays(choice) for index, choice in enumerate(qparams.choices)}
        return {"choices": choices, "choice_of_t": np.asarray(qparams.choice_of_t)}
    if not isinstance(qparams, QuantizedParams):
        return {"params": jax.tree.map(np.asarray, qparams)}

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

    params = jax.tree.map(stored, qparams.params, is_leaf=lambda leaf: isinstance(leaf, QTensor | Parts | TimeTable))
    variables = {"variables": jax.tree.map(np.asarray, dict(qparams.variables))} if qparams.variables else {}
    acts = {name: np.asarray(getattr(qparams.acts, name)) for name in _ACTS}
    correction = {} if qparams.correction is None else {"correction": _present(qparams.correction)}
    return {"params": params, "acts": acts, **variables, **correction}


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


def _present(correction: Correction) -> dict[str, np.ndarray]:
    fields = ((field.name, getattr(correction, field.name)) for field in dataclasses.fields(correction))
    return {name: np.asarray(value) for name, value in fields if value is not None}


def from_arrays(tree: dict[str, Any], plan: Any) -> Any:
    """The network that `to_arrays` took apart, bit for bit.

    Args:
        tree: The arrays.
        plan: Result of `plan_from`.
    """
    if isinstance(plan, tuple):
        first, second = (from_arrays(tree["choices"][str(index)], one) for index, one in enumerate(plan))
        return Switch((first, second), jnp.asarray(tree["choice_of_t"]))
    if plan is None:
        return jax.tree.map(jnp.asarray, tree["params"])
    params = tree["params"]
    for site in plan.sites:
        if site.weight is not None:
            node = params
            for part in site.path.split("/") if site.path else ():
                node = node[part]
            node["kernel"] = _restored_kernel(node["kernel"], site)
    tables = tree["acts"] if "acts" in tree else _acts_before_format_3(tree)
    scale, zero_point, group_of_t = (jnp.asarray(tables[name]) for name in _ACTS)
    acts = Acts(scale, zero_point, group_of_t, plan.columns)
    params, variables = jax.tree.map(jnp.asarray, (_with_tables(params), tree.get("variables", {})))
    if not plan.leaves:  # of a checkpoint that did not say yet what the network's params are
        plan = dataclasses.replace(plan, leaves=leaves_of(params, {leaf.path for leaf in plan.kernels}))
    given = tree.get("correction")
    correction = None if given is None else Correction(**jax.tree.map(jnp.asarray, given))
    return QuantizedParams(params, acts, plan, variables, correction)


def _with_tables(node: Any) -> Any:
    """The params tree with its tables over time as what they are."""
    if not isinstance(node, dict):
        return node
    return {key: TimeTable(**value) if key == TABLE else _with_tables(value) for key, value in node.items()}


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
