"""Q-Diffusion: rounding and step sizes learned block by block, on states of the whole trajectory."""

from jaxdq._common.errors import InputError
from jaxdq.calibration import RangeSettings, Recipe, ReconstructionSettings, reconstruct
from jaxdq.recipes._budget import learning_for
from jaxdq.recipes._ranges import RangeMethod, in_equal_spans
from jaxdq.recipes._rules import default_rules


def qdiffusion(
    weight_bits: int = 8,
    act_bits: int = 8,
    num_groups: int = 1,
    *,
    split: bool = True,
    ranges: RangeMethod = "mse",
    reconstruction: ReconstructionSettings | None = None,
    learning: RangeSettings | None = None,
) -> Recipe:
    """Block reconstruction on what the quantized network before each block makes of the trajectories' states.

    Ranges of least squared error; then, for every residual block, transformer block or layer beside them, in the order
    of execution, AdaRound of its kernels together with the step sizes of its activations, against the float block's
    output (`jaxdq.calibration.reconstruct` has the equation).

    Where we deviate from the paper: symmetric grids of weights, as integer dots like them; the ends and the time path
    stay in float or at 8 bits (`default_rules`); any layer whose input is a concatenation is split, as the 1x1
    shortcuts in a decoder are; step sizes of each of `num_groups` equal spans of time, of which the paper has one.

    Args:
        weight_bits: 2 to 8.
        act_bits: 2 to 8.
        num_groups: 1 to the sampler's number of steps.
        split: As in `default_rules`.
        ranges: As in `minmax`: where the reconstruction starts; "learned" goes on with all of them at once afterwards.
        reconstruction: Settings of the reconstruction.
        learning: As in `minmax`.

    Returns:
        Recipe.

    Raises:
        InputError: As in `minmax`.

    Example:
        >>> qdiffusion(4, 8).name
        'qdiffusion'

    Source: Li et al., arXiv 2302.04304 (ICCV 2023).
    """
    if reconstruction is not None and not isinstance(reconstruction, ReconstructionSettings):
        raise InputError(f"reconstruction is {reconstruction!r:.80}; give a jaxdq.calibration.ReconstructionSettings.")
    rebuild = reconstruct(reconstruction or ReconstructionSettings())
    calibrators = in_equal_spans(num_groups, ranges, (rebuild,), learning, learning_for(weight_bits, act_bits))
    rules = default_rules(weight_bits, act_bits, split=split)
    return Recipe("qdiffusion", rules, calibrators, adds=(rebuild,))
