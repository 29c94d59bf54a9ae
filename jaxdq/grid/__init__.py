"""The number grid: schemes, quantized tensors, rounding, packing. Imports jax only."""

from jaxdq.grid._affine import SMALLEST_SCALE as SMALLEST_SCALE
from jaxdq.grid._affine import dequantize as dequantize
from jaxdq.grid._affine import fake_quantize as fake_quantize
from jaxdq.grid._affine import qparams_from_range as qparams_from_range
from jaxdq.grid._affine import qparams_from_tensor as qparams_from_tensor
from jaxdq.grid._affine import quantize as quantize
from jaxdq.grid._packing import pack as pack
from jaxdq.grid._packing import unpack as unpack
from jaxdq.grid._qtensor import Grid as Grid
from jaxdq.grid._qtensor import QParams as QParams
from jaxdq.grid._qtensor import QTensor as QTensor
from jaxdq.grid._qtensor import stored_bytes as stored_bytes
from jaxdq.grid._rounding import init_rounding_logits as init_rounding_logits
from jaxdq.grid._rounding import rectified_sigmoid as rectified_sigmoid
from jaxdq.grid._rounding import round_learned as round_learned
from jaxdq.grid._rounding import round_learned_hard as round_learned_hard
from jaxdq.grid._rounding import round_nearest as round_nearest
from jaxdq.grid._rounding import round_stochastic as round_stochastic
from jaxdq.grid._rounding import rounding_penalty as rounding_penalty
from jaxdq.grid._scheme import Scheme as Scheme
