"""How much of a network a plan puts on integers, and what it leaves in float and why."""

from jaxdq._common.errors import InputError
from jaxdq.linen._plan import Plan

_REASONS_SHOWN = 3
_ENOUGH = 0.5


def check_coverage(plan: Plan, name: str) -> str:
    """Refuses a plan that quantizes nothing; says what one leaves in float that quantizes less than half.

    Args:
        plan: Plan of the network.
        name: Name of the network, for the sentence.

    Returns:
        A sentence; "" where half of the multiply-accumulates or more run on integers.

    Raises:
        InputError: No site runs on integers, and no kernel is on a grid.
    """
    if not any(site.is_integer or site.weight is not None for site in plan.sites):
        raise InputError(
            f"nothing of {name} would be quantized: {_left_in_float(plan)}; pass a flax.linen module made of Dense, "
            f"DenseGeneral and Conv, and rules that give them bits."
        )
    fraction = plan.integer_mac_fraction
    if fraction >= _ENOUGH:
        return ""
    return f"only {100 * fraction:.1f}% of the arithmetic of {name} runs on integers; in float: {_left_in_float(plan)}."


def _left_in_float(plan: Plan) -> str:
    """What is in float, by reason, the largest share of the arithmetic first."""
    macs: dict[str, int] = {}
    paths: dict[str, list[str]] = {}
    for site in plan.sites:
        if not site.is_integer:
            macs[site.reason] = macs.get(site.reason, 0) + site.site.macs
            paths.setdefault(site.reason, []).append(site.path)
    total = max(1, sum(site.site.macs for site in plan.sites))
    order = sorted(macs, key=lambda reason: -macs[reason])
    shown = [
        f"{100 * macs[reason] / total:.1f}% in {_named(paths[reason])} ({reason})" for reason in order[:_REASONS_SHOWN]
    ]
    rest = sum(macs[reason] for reason in order[_REASONS_SHOWN:])
    return ", ".join([*shown, *([f"{100 * rest / total:.1f}% elsewhere"] if len(order) > _REASONS_SHOWN else [])])


def _named(paths: list[str]) -> str:
    first = paths[0] if paths[0].startswith("(") else f"'{paths[0]}'"
    return first if len(paths) == 1 else f"{first} and {len(paths) - 1} more"
