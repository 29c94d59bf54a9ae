"""Floor 4: learning a calibration from the float model's own trajectories."""

from jaxdq.calibration._base import Calibrator as Calibrator
from jaxdq.calibration._base import Evidence as Evidence
from jaxdq.calibration._base import Ranges as Ranges
from jaxdq.calibration._base import Work as Work
from jaxdq.calibration._base import observed_ranges as observed_ranges
from jaxdq.calibration._base import share as share
from jaxdq.calibration._calibrate import Recipe as Recipe
from jaxdq.calibration._calibrate import calibrate as calibrate
from jaxdq.calibration._calibrate import plan_for as plan_for
from jaxdq.calibration._calibrate import run_recipe as run_recipe
from jaxdq.calibration._groups import SearchSettings as SearchSettings
from jaxdq.calibration._groups import search_groups as search_groups
from jaxdq.calibration._groups import share_by_price as share_by_price
from jaxdq.calibration._groups import share_optimally as share_optimally
from jaxdq.calibration._observe import observe as observe
from jaxdq.calibration._timesteps import Policy as Policy
from jaxdq.calibration._timesteps import normal_timesteps as normal_timesteps
from jaxdq.calibration._timesteps import random_timesteps as random_timesteps
from jaxdq.calibration._timesteps import select_timesteps as select_timesteps
from jaxdq.calibration._timesteps import structural_risk as structural_risk
from jaxdq.calibration._timesteps import uniform_timesteps as uniform_timesteps
from jaxdq.calibration._timesteps import visits_penalised as visits_penalised
from jaxdq.calibration._uniform import check_num_groups as check_num_groups
from jaxdq.calibration._uniform import share_uniformly as share_uniformly
