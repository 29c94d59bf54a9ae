"""Ranges from data. Imports jax and the grid only; the roles are explained in `_base`."""

from jaxdq.observers._base import Observer as Observer
from jaxdq.observers._base import WeightQParams as WeightQParams
from jaxdq.observers._ema import ema as ema
from jaxdq.observers._histogram import HistogramState as HistogramState
from jaxdq.observers._histogram import points_and_shares as points_and_shares
from jaxdq.observers._minmax import minmax as minmax
from jaxdq.observers._mse import mse as mse
from jaxdq.observers._percentile import percentile as percentile
from jaxdq.observers._weights import minmax_weights as minmax_weights
from jaxdq.observers._weights import mse_weights as mse_weights
from jaxdq.observers._weights import percentile_weights as percentile_weights
