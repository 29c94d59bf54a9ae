"""Published methods as compositions of calibrators. No mathematics here."""

from jaxdq.recipes._adpdm import adpdm as adpdm
from jaxdq.recipes._chain import chain as chain
from jaxdq.recipes._chain import weights as weights
from jaxdq.recipes._fidelity import fidelity as fidelity
from jaxdq.recipes._minmax import minmax as minmax
from jaxdq.recipes._obc import obc as obc
from jaxdq.recipes._pcr import pcr as pcr
from jaxdq.recipes._ptqd import ptqd as ptqd
from jaxdq.recipes._qdiffusion import qdiffusion as qdiffusion
from jaxdq.recipes._rules import default_rules as default_rules
from jaxdq.recipes._tac import tac as tac
from jaxdq.recipes._time_tables import time_tables as time_tables
from jaxdq.recipes._uniform_groups import uniform_groups as uniform_groups
from jaxdq.recipes._within import within_budget as within_budget
