"""More bits for the activations of some steps: one switch between two networks of the same weights (PTQD, PCR)."""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._common.errors import InputError
from jaxdq._common.progress import track
from jaxdq.calibration._base import Run, Work, calibrator, check_at_least
from jaxdq.calibration.tools.evidence import Evidence, group_of_step, share
from jaxdq.calibration.tools.walking import closest, steps_at_times, walk_of
from jaxdq.grid import Grid
from jaxdq.linen import Acts, Instead, OtherActs, Plan, SitePlan, quantize
from jaxdq.sampling import Past

Where = Literal["ends", "snr"]
RELAXED = "its inputs are in float at these steps"

_quantize = jax.jit(quantize)


@calibrator(needs=(Grid, Acts, Evidence), gives=(Instead,), precedes=(Instead,))
def relax_activations(
    act_bits: int | None = 8, share_of_steps: float = 0.2, where: Where = "ends", num_images: int = 32
) -> Run:
    """Gives the activations more bits at some steps: by which end of the way needs them, or by signal-to-noise ratios.

    - "ends" (PCR): the first and the last `share_of_steps` of the steps are tried.
    - "snr" (PTQD): the steps at which quantization leaves less signal than diffusion does,

          |eps|^2 / |eps - eps_q|^2 <= abar / (1 - abar),

      measured where the quantized sampler goes: few bits at the noisy steps, more at the late ones.

    Weights and their codes are one and the same at all steps, in memory too. Wider activations are integers up to 8
    bits, and cost what the narrow ones do where those run as int8; with `act_bits=None` the inputs of all layers are
    float at these steps, and so are their dots.

    What was found stays where images on the integer path come closer. Corrections made before are for the narrow
    activations alone.

    Args:
        act_bits: 2 to 8; None is float.
        share_of_steps: In (0, 1], of the steps at either end; plays no part with "snr".
        where: "ends" or "snr".
        num_images: Images whose states "snr" measures.

    Returns:
        A calibrator that switches to wider activations at some times.

    Raises:
        InputError: Bits outside 2 to 8, a share outside (0, 1], an unknown `where`.

    Sources: He et al., arXiv 2305.10657 (PTQD: step-aware mixed precision, of which no code is public); Tang et al.,
    arXiv 2311.06322 (PCR: activation relaxing, to 10 bits, which no integer unit has).
    """
    if where not in get_args(Where):
        raise InputError(f"where is {where!r}; give one of {', '.join(map(repr, get_args(Where)))}.")
    if act_bits is not None and (not isinstance(act_bits, int) or not 2 <= act_bits <= 8):
        raise InputError(f"act_bits is {act_bits!r}; give 2 to 8, or None for float.")
    if not isinstance(share_of_steps, int | float) or not 0 < share_of_steps <= 1:
        raise InputError(f"share_of_steps is {share_of_steps!r}; give a share above 0 and at most 1.")
    check_at_least(1, num_images=num_images)

    def run(work: Work, key: jax.Array) -> Work:
        wide = _relaxed(work, act_bits)
        if wide is None:
            return work
        steps = np.arange(work.data.num_steps)
        if where == "ends":
            count = max(1, round(share_of_steps * len(steps)))
            chosen = {"first steps": steps < count, "last steps": steps >= len(steps) - count}
        else:
            found, own = _ratios(work, num_images, key)
            chosen = {"steps of low ratio": found <= own}
        tried = {name: _switched(work, wide, mask) for name, mask in chosen.items() if mask.any()}
        kept, errors, name = closest(work, tried)
        mask = chosen.get(name, np.zeros(len(steps), bool))
        log = {"tried": errors, "kept": name, "act_bits": act_bits, "steps": np.flatnonzero(mask).tolist()}
        return kept.logging("relax_activations", log)

    return run


def _relaxed(work: Work, act_bits: int | None) -> Work | None:
    """The same weights with wider activations at all steps; None where none would be wider."""

    def wider(site: SitePlan) -> SitePlan:
        if site.act is None or (act_bits is not None and act_bits <= site.act.bits):
            return site
        if act_bits is None:
            return dataclasses.replace(site, act=None, has_own_inputs=False, reason=RELAXED)
        return dataclasses.replace(site, act=dataclasses.replace(site.act, bits=act_bits))

    sites = tuple(map(wider, work.plan.sites))
    if sites == work.plan.sites:
        return None
    plan: Plan = dataclasses.replace(work.plan, sites=sites)
    return share(work.deciding(plan=plan), group_of_step(work), work.acts.num_groups)


def _switched(work: Work, wide: Work, steps: np.ndarray) -> Work:
    at = steps_at_times(steps, work.data.t, work.denoiser.schedule.num_timesteps)
    return work.deciding(instead=Instead(OtherActs(wide.calib.acts, wide.plan), jnp.asarray(at)))


def _ratios(work: Work, num_images: int, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """(f64[S], f64[S]): signal to noise of the quantized prediction on its own way, and of the diffusion process."""
    way = walk_of(work, num_images, key)
    params = _quantize(work.denoiser.params, work.calib)
    found, x, past = list[float](), way.start(), Past()
    for step in track(range(way.num_steps), "measure ratios"):
        exact, output = (way.output(network, x, step) for network in (work.denoiser.params, params))
        error = np.sum((np.float64(exact) - output) ** 2)
        found.append(np.sum(np.float64(exact) ** 2) / max(error, np.finfo(np.float64).tiny))
        x, past = way.advance(x, output, step, past, params=params)
    alphas = np.asarray(work.denoiser.schedule.alphas_cumprod, np.float64)
    abar = np.interp(way.t, np.arange(len(alphas)), alphas)
    return np.array(found), abar / np.maximum(1 - abar, np.finfo(np.float64).tiny)
