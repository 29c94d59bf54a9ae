"""The cost of a network on a chip that is not at hand, from what the chip's compiler makes of each call.

Nothing runs on a TPU here. Cycles come from the compiler's simulation of its own final schedule; waiting for memory is
added by bytes and bandwidth.
"""

from jaxdq.cost._calls import Call as Call
from jaxdq.cost._calls import Network as Network
from jaxdq.cost._calls import bytes_of as bytes_of
from jaxdq.cost._calls import network_of as network_of
from jaxdq.cost._chips import CHIPS as CHIPS
from jaxdq.cost._chips import Chip as Chip
from jaxdq.cost._chips import chip_of as chip_of
from jaxdq.cost._compiler import Compiled as Compiled
from jaxdq.cost._compiler import cache_folder as cache_folder
from jaxdq.cost._compiler import check_installed as check_installed
from jaxdq.cost._compiler import compile_for as compile_for
from jaxdq.cost._compiler import export_framed as export_framed
from jaxdq.cost._compose import Modelled as Modelled
from jaxdq.cost._compose import Variant as Variant
from jaxdq.cost._compose import modelled as modelled
from jaxdq.cost._lowered import ExecutionMode as ExecutionMode
from jaxdq.cost._lowered import LoweredCall as LoweredCall
from jaxdq.cost._lowered import lowered_call as lowered_call
from jaxdq.cost._program import Program as Program
from jaxdq.cost._program import read_program as read_program
