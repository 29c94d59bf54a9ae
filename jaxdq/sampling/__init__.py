"""Sampling in one program or a step at a time, and the trajectories that calibration learns from."""

from jaxdq.sampling._sample import BATCH_SIZE as BATCH_SIZE
from jaxdq.sampling._sample import Batch as Batch
from jaxdq.sampling._sample import Trajectories as Trajectories
from jaxdq.sampling._sample import batch_at as batch_at
from jaxdq.sampling._sample import batches_of as batches_of
from jaxdq.sampling._sample import check_arguments as check_arguments
from jaxdq.sampling._sample import num_batches as num_batches
from jaxdq.sampling._sample import one_pass as one_pass
from jaxdq.sampling._sample import sample as sample
from jaxdq.sampling._sample import trajectories as trajectories
from jaxdq.sampling._sample import turns as turns
from jaxdq.sampling._sample import with_noise_left as with_noise_left
from jaxdq.sampling._sample import with_noise_of as with_noise_of
from jaxdq.sampling._walk import Past as Past
from jaxdq.sampling._walk import Walk as Walk
from jaxdq.sampling._walk import predict as predict
from jaxdq.sampling._walk import walk as walk
