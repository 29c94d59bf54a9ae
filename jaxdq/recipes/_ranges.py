"""How ranges are chosen, in one word that every recipe takes."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from jaxdq._common.errors import InputError
from jaxdq.calibration import (
    Calibrator,
    RangeSettings,
    Recipe,
    Sensitivity,
    fit_weights,
    learn_ranges,
    measure_sensitivity,
    observe,
    share_uniformly,
)
from jaxdq.observers import (
    Observer,
    WeightQParams,
    minmax,
    minmax_weights,
    mse,
    mse_weights,
    percentile,
    percentile_weights,
)
from jaxdq.recipes._budget import learning_for, rounding_for
from jaxdq.recipes._rules import default_rules
from jaxdq.recipes._weights import WeightRounding, rounding

RangeMethod = Literal["minmax", "mse", "percentile", "learned"]


class Chosen(NamedTuple):
    """What the word stands for.

    Attributes:
        weights: Ranges of weights.
        acts: Ranges of activations.
        learn: The calibrator that learns ranges once the groups are found, or none.
    """

    weights: WeightQParams
    acts: Observer
    learn: tuple[Calibrator, ...]


def chosen(ranges: RangeMethod, learning: RangeSettings | None, default: RangeSettings) -> Chosen:
    """The ranges of weights and activations, by name; `default` settings learn where none are given.

    - "minmax": all values; nothing is clipped.
    - "mse": the range of least rounding error, of squared error for activations and of power 2.4 for weights.
    - "percentile": all but the outermost values, 0.01% of an activation's and 0.1% of an output channel's weights at
      each end. (0.01% of a channel's few hundred weights would be none.)
    - "learned": starts from "mse" and then follows the gradient of the error of the network's output.

    Raises:
        InputError: An unknown name, or settings of a learning that does not take place.
    """
    known = get_args(RangeMethod)
    if not isinstance(ranges, str) or ranges not in known:
        raise InputError(f"ranges is {ranges!r}; give one of {', '.join(map(repr, known))}.")
    if learning is not None and ranges != "learned":
        raise InputError(
            f"settings of the learning were given, and ranges='{ranges}' learns nothing; give ranges='learned', or "
            f"leave `learning` out."
        )
    if learning is not None and not isinstance(learning, RangeSettings):
        raise InputError(f"learning is {learning!r:.80}; give a jaxdq.calibration.RangeSettings.")
    if ranges == "minmax":
        return Chosen(minmax_weights(), minmax(), ())
    if ranges == "percentile":
        return Chosen(percentile_weights(), percentile(), ())
    return Chosen(mse_weights(), mse(2.0), (learn_ranges(learning or default),) if ranges == "learned" else ())


def correcting(
    name: str,
    steps: Calibrator | tuple[Calibrator, ...],
    bits: tuple[int, int],
    num_groups: int,
    ranges: RangeMethod,
    weights: WeightRounding | None,
    split: bool,
    learning: RangeSettings | None,
) -> Recipe:
    """The recipe that puts `steps` after ranges in equal spans, weights rounded by GPTQ below 8 bits."""
    rounded = rounding_for(bits[0]) if weights is None else weights
    added = (steps,) if isinstance(steps, Calibrator) else steps
    before = in_equal_spans(num_groups, ranges, rounded, learning, learning_for(*bits))
    before = (*before, *missing_for(before, added))
    return Recipe(name, default_rules(*bits, split=split), before).adding(*added)


def missing_for(before: Sequence[Calibrator], added: Sequence[Calibrator]) -> tuple[Calibrator, ...]:
    """The measurement that errors are weighted by, where what is added needs it and nothing before it has made it."""
    known = {kind for one in before for kind in one.gives}
    missing = Sensitivity not in known and any(Sensitivity in one.needs for one in added)
    return (measure_sensitivity(),) if missing else ()


def in_equal_spans(
    num_groups: int,
    ranges: RangeMethod,
    weights: WeightRounding | tuple[Calibrator, ...],
    learning: RangeSettings | None,
    default: RangeSettings,
) -> tuple[Calibrator, ...]:
    """Calibrators that fit ranges in each of `num_groups` equal spans of the steps, and round the weights."""
    weight_range, act_range, learn = chosen(ranges, learning, default)
    rounded = weights if isinstance(weights, tuple) else rounding(weights)
    sensitivity = (measure_sensitivity(),) if learn or rounded else ()
    spans = (fit_weights(weight_range), observe(act_range), *sensitivity, share_uniformly(num_groups))
    # Ranges are learned around the codes: weight scales that were learned for nearest rounding suit no other.
    return (*spans, *rounded, *learn)
