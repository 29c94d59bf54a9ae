"""ADP-DM: activation grids per group of timesteps, the groups found by differentiable search."""

from jaxdq.calibration import (
    Calibrator,
    RangeSettings,
    Recipe,
    SearchSettings,
    check_budget,
    fit_weights,
    measure_sensitivity,
    observe,
    refit_ranges,
    search_groups,
    select_timesteps,
    structural_risk,
)
from jaxdq.observers import percentile
from jaxdq.recipes._budget import learning_for, rounding_for, search_for
from jaxdq.recipes._ranges import RangeMethod, chosen
from jaxdq.recipes._rules import default_rules
from jaxdq.recipes._weights import WeightRounding, rounding


def adpdm(
    weight_bits: int = 8,
    act_bits: int = 8,
    num_groups: int = 8,
    *,
    budget: int | None = None,
    search: SearchSettings | None = None,
    ranges: RangeMethod = "learned",
    weights: WeightRounding | None = None,
    split: bool = True,
    learning: RangeSettings | None = None,
) -> Recipe:
    """Accurate post-training quantization of diffusion models: searched time groups on an integer path.

    Equation: for logits `a[s, g]`, `p = softmax(a)`, the discretisation error of the soft groups, weighted by what it
    costs the image, and an annealed entropy of p are minimised; then `group(s) = argmax_g a[s, g]`, each group's grids
    are fitted to its steps, boundaries move where images of the integer path come closer, and all ranges follow the
    gradient of the noise prediction's error.

    Where we deviate from the paper and from its public code, and why: one bank per tensor instead of ranges per input
    channel, since a scale that varies along the contraction can't leave an integer dot; no error of the noise
    prediction in the search, which made its result worse; an entropy term that grows, and argmax, since a mixture of
    grids is no grid; errors weighted by what reaches the image; ranges learned after the choice, the weights' among
    them, since ranges and not groups carry most of the gain; below 8 bits weights are rounded by GPTQ, since nearest
    rounding is then the largest error; and acceptance on the integer path.
    8 groups are the paper's; its learning rate and its weight decay are not used (see `SearchSettings`). Timesteps are
    chosen by structural risk only where a budget is given: trajectories are at hand anyway, and all of them serve best.

    Args:
        weight_bits: 2 to 8.
        act_bits: 2 to 8.
        num_groups: 1 to the sampler's number of steps.
        budget: States in the calibration set, at timesteps chosen by structural risk minimisation; at least as many as
            groups. None is every state that was sampled.
        search: Settings of the search; None moves no boundaries at 8 bits.
        ranges: As in `minmax`; "mse" leaves the grids that the search ends with, whose squared errors are weighted by
            what they cost the image; "minmax" and "percentile" are fitted anew to the groups that it found.
        weights: As in `minmax`; None is "gptq" below 8 bits of weights, and "nearest" at 8.
        split: As in `default_rules`.
        learning: As in `minmax`.

    Returns:
        Recipe.

    Raises:
        InputError: As in `minmax`; a budget of fewer states than groups.

    Example:
        >>> adpdm(6, 6).num_groups
        8

    Source: Wang et al., arXiv 2305.18723 (CVPR 2024).
    """
    weight_range, act_range, learn = chosen(ranges, learning, learning_for(weight_bits, act_bits))
    if ranges == "minmax":
        act_range = percentile(100.0)  # the same ranges, from the histograms that the search needs
    selection: tuple[Calibrator, ...] = ()
    if budget is not None:
        check_budget(budget, num_groups)
        selection = (select_timesteps(structural_risk(), budget),)
    return Recipe(
        name="adpdm",
        rules=default_rules(weight_bits, act_bits, split=split),
        calibrators=(
            fit_weights(weight_range),
            *selection,
            observe(act_range),
            measure_sensitivity(),
            search_groups(num_groups, search or search_for(weight_bits, act_bits)),
            *((refit_ranges(),) if ranges in ("minmax", "percentile") else ()),
            *rounding(rounding_for(weight_bits) if weights is None else weights),
            *learn,
        ),
    )
