"""Rules and plans: which site runs on which integers, total and loud.

A rule states what should happen at the sites it matches; the plan, what happens at every site of one network. A site
that no rule matches and a rule that matches no site are errors: both are most often typing slips, which would
otherwise pass as a float layer or as an unquantized network.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxdq._common.errors import InputError
from jaxdq._common.trees import unboxed
from jaxdq.grid import QTensor, Scheme
from jaxdq.linen._belonging import Leaf, leaves_of
from jaxdq.linen._parts import bounds_of
from jaxdq.linen._sites import Site

TABLED = "replaced by a table over time"
Column = tuple[str, Scheme]  # an array, by the name of the first input that it is, and the scheme of its codes


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is wanted of the sites that a pattern matches.

    Attributes:
        pattern: A regular expression that matches a site's whole path.
        weight: Scheme of the kernel; None leaves it in float. `channel_axis=-1` means the output channels.
        act: Scheme of the inputs; None leaves them in float, and then the site computes in float.
        kind: "dense", "conv" or "product"; None is any.
        reason: Why the site, or its input, stays in float; shown in the plan.

    Example:
        >>> rules = [Rule("conv_(in|out)", reason="its input and output are images"),
        ...          Rule(".*", weight=Scheme(8, channel_axis=-1), act=Scheme(8, symmetric=False))]
    """

    pattern: str
    weight: Scheme | None = None
    act: Scheme | None = None
    kind: str | None = None
    reason: str = ""

    def matches(self, site: Site) -> bool:
        """Whether the rule speaks of this site."""
        return self.kind in (None, site.kind) and re.fullmatch(self.pattern, site.path) is not None


@dataclasses.dataclass(frozen=True)
class SitePlan:
    """What happens at one site.

    Attributes:
        site: The site.
        weight: Scheme of its kernel, channel axes resolved; None is float.
        act: Scheme of its inputs; None is float.
        reason: Why it does not run on integers; "" where it does.
        parts: Sizes of the parts that its kernel is cut into along the input channels, each with a grid of its own; ()
            is one kernel (see `Parts`).
        has_own_inputs: Whether each part's inputs have a grid of their own too.
        sparsity: Which of its weights are 0, in words such as "2:4"; "" where none were made so.
    """

    site: Site
    weight: Scheme | None
    act: Scheme | None
    reason: str = ""
    parts: tuple[int, ...] = ()
    has_own_inputs: bool = False
    sparsity: str = ""

    @property
    def pieces(self) -> tuple[tuple[int, int], ...]:
        """(start, stop) along the input channels of each piece of the input that has a grid of its own; () is whole."""
        return tuple(bounds_of(self.parts)) if self.has_own_inputs else ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the arrays that are quantized as activations: the site's inputs, or `path[start:stop]` of pieces."""
        return tuple(f"{self.path}[{start}:{stop}]" for start, stop in self.pieces) or self.site.inputs

    def array_of(self, name: str) -> str:
        """The array that an input is; pieces are arrays of their own."""
        return name if self.pieces else self.site.array_of(name)

    @property
    def is_integer(self) -> bool:
        """Whether the site's contraction runs on integers."""
        return self.act is not None

    @property
    def path(self) -> str:
        """The site's path."""
        return self.site.path

    def with_code_sum(self, kernel: QTensor) -> QTensor:
        """The kernel with what the activations' zero point multiplies, so that it is not summed at every call."""
        if self.act is None or self.act.symmetric:
            return kernel
        axes = tuple(axis for axis in range(kernel.ndim) if axis not in self.site.channel_axes)
        return dataclasses.replace(kernel, code_sum=jnp.sum(kernel.qvalue, axes, jnp.int32, keepdims=True))


@dataclasses.dataclass(frozen=True)
class Plan:
    """The total map from sites to schemes: static, hashable, and printable as a table.

    Attributes:
        sites: One SitePlan for each site, in the order of execution.
        unplanned: (path, shape, reason) of parameters of two or more axes that belong to no site: they stay in float.
        dtype: What flows between the sites, such as "bfloat16"; "" is what flax makes of inputs and params.
        leaves: Names, shapes and digests that identify the network's params; () for a plan made without params.
    """

    sites: tuple[SitePlan, ...]
    unplanned: tuple[tuple[str, tuple[int, ...], str], ...] = ()
    dtype: str = ""
    leaves: tuple[Leaf, ...] = ()

    def computing_in(self, dtype: jax.typing.DTypeLike) -> "Plan":
        """The same plan, with everything that is not on integers in this dtype."""
        name = jnp.dtype(dtype).name
        sites = tuple(dataclasses.replace(site, site=dataclasses.replace(site.site, dtype=name)) for site in self.sites)
        return dataclasses.replace(self, sites=sites, dtype=name)

    def with_tables(self, paths: Iterable[str]) -> "Plan":
        """The same plan, with tables over time in place of the modules at these paths, whose sites do not run."""
        paths = tuple(paths)

        def is_within(site: SitePlan) -> bool:
            return any(site.path == path or site.path.startswith(f"{path}/") for path in paths)

        def tabled(site: SitePlan) -> SitePlan:
            return SitePlan(dataclasses.replace(site.site, macs=0), None, None, TABLED)

        sites = tuple(tabled(site) if is_within(site) else site for site in self.sites)
        return dataclasses.replace(self, sites=sites) if paths else self

    @functools.cached_property
    def kernels(self) -> tuple[Leaf, ...]:
        """The params that go on grids."""
        planned = (site.site for site in self.sites if site.weight is not None)
        return tuple(Leaf(f"{site.path}/kernel".lstrip("/"), site.shape, site.dtype) for site in planned)

    def without_digests(self, paths: Collection[str]) -> "Plan":
        """The same plan, for params in which these have other numbers."""
        leaves = (leaf._replace(digest="") if leaf.path in paths else leaf for leaf in self.leaves)
        return dataclasses.replace(self, leaves=tuple(leaves)) if paths else self

    @functools.cached_property
    def by_path(self) -> dict[str, SitePlan]:
        """Path -> SitePlan."""
        return {site.path: site for site in self.sites}

    @functools.cached_property
    def columns(self) -> tuple[Column, ...]:
        """(array, scheme) of every array that is quantized: the columns of `Acts`.

        Sites of one scheme that are called with the same array share its column, so that its codes are made once.
        """
        return tuple(
            dict.fromkeys(
                (site.array_of(name), site.act) for site in self.sites if site.act is not None for name in site.inputs
            )
        )

    @functools.cached_property
    def activations(self) -> dict[str, tuple[int, Scheme]]:
        """Name of every input that is quantized -> (index of its column, its scheme)."""
        index = {column: index for index, column in enumerate(self.columns)}
        return {
            name: (index[site.array_of(name), site.act], site.act)
            for site in self.sites
            if site.act is not None
            for name in site.inputs
        }

    @functools.cached_property
    def step_invariant_columns(self) -> tuple[int, ...]:
        """Columns of arrays that are the same at every step: all groups have one grid there, that of the first.

        So what a sampling loop makes of them does not depend on the step, and XLA takes it out of the loop.
        """
        names = (name for site in self.sites if site.is_integer and site.site.is_condition for name in site.inputs)
        return tuple(sorted({self.activations[name][0] for name in names}))

    def has_codes_of_another(self, path: str) -> bool:
        """Whether an earlier site quantizes the same array on the same grid, which XLA then does once."""
        if path not in self.activations:
            return False
        column = self.activations[path][0]
        return path != next(name for name, (other, _) in self.activations.items() if other == column)

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.sites, self.unplanned, self.dtype, self.leaves))

    def __hash__(self) -> int:
        # Asked for at every dispatch of a jitted function: computed once.
        return self._hash

    @property
    def integer_mac_fraction(self) -> float:
        """Share of the network's multiply-accumulates that run on integers."""
        total = sum(site.site.macs for site in self.sites)
        return sum(site.site.macs for site in self.sites if site.is_integer) / max(1, total)

    def rows(self) -> list[tuple[str, str, str, str, str, str]]:
        """The plan as a table: site, kind, shape, weight bits, activation bits, integer or float and why."""
        planned = [
            (
                site.path,
                site.site.kind,
                "x".join(map(str, site.site.shape)),
                "-"
                if site.site.kind == "product"
                else ", ".join(filter(None, (str(site.weight or "float"), site.sparsity))),
                str(site.act or "float"),
                "integer" if site.is_integer else f"float: {site.reason}",
            )
            for site in self.sites
        ]
        rest = [(path, "param", "x".join(map(str, shape)), "float", "-", why) for path, shape, why in self.unplanned]
        return planned + [(*row[:5], f"float: {row[5]}") for row in rest]

    def __str__(self) -> str:
        rows = [("site", "kind", "shape", "weight", "act", "runs as"), *self.rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(6)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)


def on_pieces(
    activations: Mapping[str, Any], name: str, x: jax.Array, function: Callable[[str, jax.Array], jax.Array]
) -> jax.Array:
    """What a visitor makes of an input: `function` of it, or of each of its pieces; x itself where it stays in float.

    Args:
        activations: Those of a plan; keys are names of inputs, or `path[start:stop]` of pieces along the last axis.
        name: Name of the input.
        x: The input.
        function: (name of the activation, array) -> an array of its shape.
    """
    if name in activations:
        return function(name, x)
    found = (re.fullmatch(rf"{re.escape(name)}\[(\d+):(\d+)\]", key) for key in activations)
    made = [function(piece[0], x[..., int(piece[1]) : int(piece[2])]) for piece in found if piece is not None]
    if not made:
        return x
    return jnp.concatenate(made, axis=-1)


def make_plan(rules: Sequence[Rule], sites: Iterable[Site], params: Any = None) -> Plan:
    """The plan that the rules make of these sites; the first rule that matches a site decides.

    Args:
        rules: In order of precedence.
        sites: Sites from `find_sites`.
        params: The params tree, to name what belongs to no site, and to know it again; optional.

    Returns:
        Plan.

    Raises:
        InputError: A site that no rule matches, a rule that matches no site, a scheme whose scale could not leave the
            contraction, or activation bits without weight bits.

    Example:
        >>> site = Site("dense", "dense", (4, 2), (1,), 1, 8)
        >>> print(make_plan([Rule(".*", Scheme(4, channel_axis=-1), Scheme(8))], [site]))
        site   kind   shape  weight  act  runs as
        dense  dense  4x2    4       8    integer
    """
    sites = tuple(sites)
    chosen = [(site, next((rule for rule in rules if rule.matches(site)), None)) for site in sites]
    uncovered = [site.path for site, rule in chosen if rule is None]
    if uncovered:
        raise InputError(
            f"no rule matches {_listed(uncovered)}; add a rule for each, "
            f"Rule('.*', reason='...') at the end to leave the rest in float."
        )
    used = {id(rule) for _, rule in chosen}
    # A rule whose sites were all taken by earlier ones is not a slip; one that matches nothing at all is.
    unused = [rule.pattern for rule in rules if id(rule) not in used and not any(rule.matches(site) for site in sites)]
    if unused:
        raise InputError(
            f"the rules {_listed(unused)} match none of the {len(sites)} sites; correct or remove them "
            f"(paths look like {_listed([site.path for site in sites][:3])}, and the whole path must match)."
        )
    decided = tuple(_decide(site, rule) for site, rule in chosen if rule is not None)
    plan = Plan(decided, _unplanned(sites, params))
    return dataclasses.replace(plan, leaves=leaves_of(params, {leaf.path for leaf in plan.kernels}))


def _decide(site: Site, rule: Rule) -> SitePlan:
    weight, act = rule.weight, rule.act
    if site.unsupported and not (site.takes_weights and weight):
        return SitePlan(site, None, None, site.unsupported)
    if site.kind == "product":
        return SitePlan(site, None, act, "" if act else rule.reason or "products of activations are left in float")
    if act is not None and weight is None:
        raise InputError(
            f"rule {rule.pattern!r} gives '{site.path}' {act.bits}-bit activations and a float kernel, and no integer "
            f"dot takes both; give the kernel a scheme too, or leave the activations in float."
        )
    if act is not None and act.channel_axis is not None:
        raise InputError(
            f"rule {rule.pattern!r} wants activation scales along axis {act.channel_axis} at '{site.path}', and a "
            f"scale along the contraction can't leave the integer dot; use channel_axis=None for activations."
        )
    if weight is not None and weight.channel_axis is not None:
        if set(weight.channel_axes(len(site.shape))) - set(site.channel_axes):
            raise InputError(
                f"rule {rule.pattern!r} wants weight scales along axis {weight.channel_axis} of {site.shape} at "
                f"'{site.path}', and a scale along the contraction can't leave the integer dot; use channel_axis=-1."
            )
        weight = dataclasses.replace(weight, channel_axis=site.channel_axes)
    elif weight is not None and site.stacked:
        weight = dataclasses.replace(weight, channel_axis=tuple(sorted(site.stacked)))  # a scale for each layer
    if site.unsupported:
        return SitePlan(site, weight, None, f"weights only: {site.unsupported}")
    default = "weights only" if weight else "left in float by rule"
    return SitePlan(site, weight, act, "" if act else rule.reason or default)


def _unplanned(sites: Sequence[Site], params: Any) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    modules = {site.path for site in sites}
    rest = []
    for keys, leaf in jax.tree_util.tree_leaves_with_path(unboxed(params)):
        path = "/".join(str(getattr(key, "key", key)) for key in keys)
        if leaf.ndim >= 2 and path.rpartition("/")[0] not in modules:
            rest.append((path, tuple(leaf.shape), "not the kernel of a Dense, DenseGeneral or Conv that is called"))
    return tuple(rest)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
