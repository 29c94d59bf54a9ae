"""Plans: which site of one network runs on which integers, total: what stays in float is there too, with the reason."""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdq.grid import QTensor, Scheme
from jaxdq.linen._belonging import Leaf
from jaxdq.linen._parts import bounds_of, input_axis
from jaxdq.linen._sites import Site

TABLED = "replaced by a table over time"
Column = tuple[str, Scheme]  # an array, by the name of the first input that it is, and the scheme of its codes


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
    def input_axis(self) -> int:
        """The axis of its kernel that the input channels lie along."""
        return input_axis(self.site.shape, self.site.kind)

    @property
    def parts_in_words(self) -> str:
        """Such as "cut 64+32" or "cut 10x128"; "" where the kernel is whole."""
        if not self.parts:
            return ""
        alike = len(set(self.parts)) == 1 and not self.has_own_inputs
        return f"cut {len(self.parts)}x{self.parts[0]}" if alike else f"cut {'+'.join(map(str, self.parts))}"

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
                else ", ".join(filter(None, (str(site.weight or "float"), site.sparsity, site.parts_in_words))),
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
