"""Noise schedules, samplers, the one sampling loop, timestep groups and the model that they act on."""

from jaxdq.diffusion._ddim import DDIM as DDIM
from jaxdq.diffusion._ddim import ddim as ddim
from jaxdq.diffusion._ddpm import DDPM as DDPM
from jaxdq.diffusion._ddpm import ddpm as ddpm
from jaxdq.diffusion._denoiser import Denoiser as Denoiser
from jaxdq.diffusion._denoiser import check_finite as check_finite
from jaxdq.diffusion._denoiser import spread_rows as spread_rows
from jaxdq.diffusion._groups import check_groups as check_groups
from jaxdq.diffusion._groups import groups_of_steps as groups_of_steps
from jaxdq.diffusion._guidance import Guided as Guided
from jaxdq.diffusion._guidance import guided as guided
from jaxdq.diffusion._loop import image_keys as image_keys
from jaxdq.diffusion._loop import initial_noise as initial_noise
from jaxdq.diffusion._loop import sample as sample
from jaxdq.diffusion._loop import step_noise as step_noise
from jaxdq.diffusion._loop import trajectory as trajectory
from jaxdq.diffusion._sampler import Coefficients as Coefficients
from jaxdq.diffusion._sampler import Sampler as Sampler
from jaxdq.diffusion._sampler import step as step
from jaxdq.diffusion._schedule import NoiseSchedule as NoiseSchedule
from jaxdq.diffusion._schedule import linear_schedule as linear_schedule
from jaxdq.diffusion._schedule import rescale_zero_terminal_snr as rescale_zero_terminal_snr
from jaxdq.diffusion._schedule import scaled_linear_schedule as scaled_linear_schedule
from jaxdq.diffusion._schedule import squared_cosine_schedule as squared_cosine_schedule
from jaxdq.diffusion._scheduler_config import schedule_from_config as schedule_from_config
from jaxdq.diffusion._time import TimePerRow as TimePerRow
