"""Diffusers' UNets in Flax and NHWC, and the folders that they come in."""

from jaxdq.models.unet._build import abstract_params as abstract_params
from jaxdq.models.unet._controlnet import Controlled as Controlled
from jaxdq.models.unet._controlnet import ControlNet as ControlNet
from jaxdq.models.unet._controlnet import controlnet_from_config as controlnet_from_config
from jaxdq.models.unet._describe import ModelFiles as ModelFiles
from jaxdq.models.unet._describe import describe as describe
from jaxdq.models.unet._drawn import described_rows as described_rows
from jaxdq.models.unet._files import read_json as read_json
from jaxdq.models.unet._files import read_params as read_params
from jaxdq.models.unet._folder import bundled_models as bundled_models
from jaxdq.models.unet._folder import load_denoiser as load_denoiser
from jaxdq.models.unet._folder import load_unet_folder as load_unet_folder
from jaxdq.models.unet._folder import model_folder as model_folder
from jaxdq.models.unet._folder import save_unet_folder as save_unet_folder
from jaxdq.models.unet._folder import write_configs as write_configs
from jaxdq.models.unet._hub import without_network as without_network
from jaxdq.models.unet._unet2d import UNet2D as UNet2D
from jaxdq.models.unet._unet2d import unet2d_from_config as unet2d_from_config
from jaxdq.models.unet._unet2d_condition import UNet2DCondition as UNet2DCondition
from jaxdq.models.unet._unet2d_condition import unet2d_condition_from_config as unet2d_condition_from_config
