"""Integer arithmetic. Imports jax and the grid only."""

from jaxdq.ops._conv import Window as Window
from jaxdq.ops._conv import conv_general_dilated as conv_general_dilated
from jaxdq.ops._conv import conv_general_dilated_float as conv_general_dilated_float
from jaxdq.ops._dot import DotDims as DotDims
from jaxdq.ops._dot import dot_general as dot_general
from jaxdq.ops._dot import dot_general_float as dot_general_float
from jaxdq.ops._lowering import lowered_as as lowered_as
