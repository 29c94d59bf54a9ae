"""States of the quantized sampler in place of the float one's, so that what follows learns where it will be used."""

from typing import Any, Literal, get_args

import jax
import numpy as np

from jaxdq._common.errors import InputError
from jaxdq._common.progress import track
from jaxdq.calibration._base import Run, Work, calibrator
from jaxdq.grid import Grid
from jaxdq.linen import Acts, quantize
from jaxdq.sampling import Trajectories, walk

Target = Literal["local", "trajectory"]

_quantize = jax.jit(quantize)


@calibrator(needs=(Grid, Acts), gives=())
def roll_out(target: Target = "local") -> Run:
    """Draws trajectories by the network as it is quantized by now; what follows learns from their states.

    Calibrators that learn from the float model's trajectories never see what the quantized sampler makes of its own
    errors. With x the quantized sampler's state, the output that is learned at each step is

        local       network(x): stay close to the float model wherever you are
        trajectory  (x*' - a x) / b: be at x*' after the step, where the float sampler is from the same noise

    with the next state `x' = a x + b output` of the sampler's step. Serial-to-parallel calibration is this and a
    calibrator that learns, once or several times over. Facts that were measured before are of the float model's states.

    Args:
        target: "local" or "trajectory".

    Returns:
        A calibrator that replaces the trajectories.

    Raises:
        InputError: An unknown target; "trajectory" with a sampler whose step looks at more than its own state.

    Source: "Efficiency Meets Fidelity", arXiv 2412.06661, as its name and abstract say; which of the targets its
    authors take is not known to us.
    """
    if target not in get_args(Target):
        raise InputError(f"target is {target!r}; give one of {', '.join(map(repr, get_args(Target)))}.")

    def run(work: Work, key: jax.Array) -> Work:
        sampler, schedule = work.problem.sampler, work.denoiser.schedule
        numbers = sampler.coefficients(schedule)
        if target == "trajectory" and numbers.num_past:
            raise InputError(
                f"target='trajectory' is for samplers whose step looks at its own state alone, and "
                f"{type(sampler).__name__} looks back; take 'local', or calibrate with ddim."
            )
        batch_size, mesh, _ = work.machine
        num_images = work.data.num_images
        way = walk(work.denoiser, sampler, num_images=num_images, key=key, batch_size=batch_size, mesh=mesh)
        params = _quantize(work.denoiser.params, work.calib)
        x = exact_x = way.start()
        past: tuple = ()
        states, outputs = [], []
        for step in track(range(way.num_steps), "roll out"):
            states.append(x)
            if target == "local":
                outputs.append(way.output(work.denoiser.params, x, step))
            else:
                c = numbers.at(step)
                to_x, to_output = c.keep_x0 * c.x0_from_x + c.keep_x, c.keep_x0 * c.x0_from_output + c.keep_output
                exact_output = way.output(work.denoiser.params, exact_x, step)
                # Noise is the same on both ways and cancels; so would clipping, where both are clipped alike.
                outputs.append(np.asarray(exact_output + to_x / to_output * (exact_x - x), np.float32))
                exact_x, _ = way.advance(exact_x, exact_output, step)
            x, past = way.advance(x, way.output(params, x, step), step, past)
        images: Any = way.images(x)
        index = np.arange(num_images, dtype=np.int32)
        data = Trajectories(np.stack(states), np.stack(outputs), way.t, index, images)
        return work._replace(problem=work.problem._replace(data=data))

    return run
