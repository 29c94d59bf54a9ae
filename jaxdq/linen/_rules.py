"""Rules and plans: which site runs on which integers, total and loud.

A rule states what should happen at the sites it matches; the plan, what happens at every site of one network. A site
that no rule matches and a rule that matches no site are errors: both are most often typing slips, which would
otherwise pass as a float layer or as an unquantized network.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jax

from jaxdq._common.errors import InputError
from jaxdq._common.trees import unboxed
from jaxdq.grid import Scheme
from jaxdq.linen._belonging import leaves_of
from jaxdq.linen._plan import Plan, SitePlan
from jaxdq.linen._sites import Site


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is wanted of the sites that a pattern matches.

    Attributes:
        pattern: A regular expression that matches a site's whole path.
        weight: Scheme of the kernel; None leaves it in float. `channel_axis=-1` means the output channels.
        act: Scheme of the inputs; None leaves them in float, and then the site computes in float.
        kind: "dense", "conv" or "product"; None is any.
        reason: Why the site, or its input, stays in float; shown in the plan.
        cut: Where the kernel is cut along its input channels into parts with grids of their own, at the price of an
            integer dot for each: "joined", where the input is a concatenation (a shortcut beside the features), each
            array on a grid of its own too; or so many channels, each with its grid of weights. Sites that can't be
            cut there stay whole.

    Example:
        >>> rules = [Rule("conv_(in|out)", reason="its input and output are images"),
        ...          Rule(".*", weight=Scheme(8, channel_axis=-1), act=Scheme(8, symmetric=False))]
    """

    pattern: str
    weight: Scheme | None = None
    act: Scheme | None = None
    kind: str | None = None
    reason: str = ""
    cut: Literal["joined"] | int | None = None

    def __post_init__(self) -> None:
        is_number = isinstance(self.cut, int) and not isinstance(self.cut, bool) and self.cut > 0
        if not is_number and self.cut not in (None, "joined"):
            raise InputError(f"rule {self.pattern!r} has cut={self.cut!r}; give 'joined', channels of a part, or None.")

    def matches(self, site: Site) -> bool:
        """Whether the rule speaks of this site."""
        return self.kind in (None, site.kind) and re.fullmatch(self.pattern, site.path) is not None


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
    parts = _parts(site, rule) if weight else ()
    has_own_inputs = bool(parts and act and rule.cut == "joined")
    return SitePlan(site, weight, act, "" if act else rule.reason or default, parts, has_own_inputs)


def _parts(site: Site, rule: Rule) -> tuple[int, ...]:
    parts = site.channels
    if isinstance(rule.cut, int):
        whole, rest = divmod(sum(parts), rule.cut)
        parts = (*(rule.cut,) * whole, *(rest,) * (rest > 0))
    return parts if rule.cut and len(parts) > 1 else ()


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
