"""jaxdq: post-training quantization of diffusion models in JAX/Flax, as real integers.

The names below are in reading order; `README.md` shows them at work.
"""

from jaxdq import metrics as metrics
from jaxdq import observers as observers
from jaxdq import ops as ops
from jaxdq import recipes as recipes
from jaxdq._common.errors import InputError as InputError
from jaxdq._common.errors import InputWarning as InputWarning
from jaxdq._version import __version__ as __version__
from jaxdq.calibration import Recipe as Recipe
from jaxdq.calibration import calibrate as calibrate
from jaxdq.checkpoint import restore as restore
from jaxdq.checkpoint import save as save
from jaxdq.diffusion import DDIM as DDIM
from jaxdq.diffusion import DDPM as DDPM
from jaxdq.diffusion import Denoiser as Denoiser
from jaxdq.diffusion import NoiseSchedule as NoiseSchedule
from jaxdq.diffusion import ddim as ddim
from jaxdq.diffusion import ddpm as ddpm
from jaxdq.diffusion import dpm_solver as dpm_solver
from jaxdq.diffusion import guided as guided
from jaxdq.diffusion import linear_schedule as linear_schedule
from jaxdq.diffusion import sampler_from_config as sampler_from_config
from jaxdq.diffusion import schedule_from_config as schedule_from_config
from jaxdq.diffusion import wrap as wrap
from jaxdq.evaluation import evaluate as evaluate
from jaxdq.grid import QParams as QParams
from jaxdq.grid import QTensor as QTensor
from jaxdq.grid import Scheme as Scheme
from jaxdq.grid import stored_bytes as stored_bytes
from jaxdq.linen import Calibration as Calibration
from jaxdq.linen import Plan as Plan
from jaxdq.linen import QuantizedParams as QuantizedParams
from jaxdq.linen import Rule as Rule
from jaxdq.linen import apply as apply
from jaxdq.linen import quantize as quantize
from jaxdq.models.pipelines import denoiser_from_pipeline as denoiser_from_pipeline
from jaxdq.models.pipelines import quantize_pipeline as quantize_pipeline
from jaxdq.models.unet import load_denoiser as load_denoiser
from jaxdq.sampling import sample as sample
