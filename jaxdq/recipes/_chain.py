"""One method after the other."""

import dataclasses
from collections.abc import Sequence

from jaxdq._common.errors import InputError
from jaxdq.calibration import Calibrator, Recipe
from jaxdq.recipes._ranges import missing_for
from jaxdq.recipes._weights import WeightRounding, rounding


def chain(first: Recipe, *others: Recipe | Calibrator | Sequence[Calibrator]) -> Recipe:
    """A recipe, and after its calibrators what others add to it.

    Of another recipe that is its own step (`Recipe.adds`): `tac()` adds its correction, and its bits and ranges, which
    the first recipe decides, play no part. Calibrators are added as they are.

    Args:
        first: Decides rules, bits, ranges and groups.
        *others: Recipes that add something, calibrators, or what `weights` returns.

    Returns:
        Recipe, named `adpdm+tac`.

    Raises:
        InputError: A recipe that adds nothing of its own, or something else than these.

    Example:
        >>> from jaxdq.recipes import adpdm, tac
        >>> chain(adpdm(4, 8), tac()).name
        'adpdm+tac'
    """
    if not isinstance(first, Recipe):
        raise InputError(f"chain starts with {first!r:.60}; give a recipe such as recipes.adpdm(4, 8) first.")
    made = first
    for other in others:
        if isinstance(other, Recipe) and not other.adds:
            raise InputError(f"recipe '{other.name}' adds nothing to '{made.name}' but ranges; put it first.")
        added = other.adds if isinstance(other, Recipe) else (other,) if isinstance(other, Calibrator) else other
        if not isinstance(added, Sequence) or not all(isinstance(one, Calibrator) for one in added):
            raise InputError(f"chain was given {other!r:.60}; give recipes or calibrators.")
        names = [other.name] if isinstance(other, Recipe) else [one.name for one in added]
        made = dataclasses.replace(
            made.adding(*missing_for(made.calibrators, added), *added), name="+".join([made.name, *names])
        )
    return made


def weights(method: WeightRounding) -> tuple[Calibrator, ...]:
    """What rounds weights, to `chain` after a recipe whose ranges are fitted: the `weights=` of other recipes.

    Args:
        method: "nearest", "gptq", "obq" or "adaround", as in `minmax`.

    Returns:
        The calibrators.

    Raises:
        InputError: An unknown name.

    Example:
        >>> [one.name for one in weights("gptq")]
        ['compensate_rounding']
    """
    return rounding(method)
