"""The Flax seam, the only place besides the UNets that imports flax.

What is intercepted: calls of `Dense`, `DenseGeneral`, `Conv` and `Einsum`, wherever they stand in a linen module
(within `nn.remat` and `nn.scan` too), and the two products of `DotProductAttention`. The attention of diffusers' Flax
classes runs as `DotProductAttention`, in float. What is not: other contractions that a module computes by calling
`jnp.einsum` itself or a layer as a function (they are no modules of the network, so they stay in float), transposed
and masked layers, those with arithmetic of their own, and those whose kernel something else reads or changes. Layers
in other transformations (`nn.jit`, `nn.vmap`, `nn.cond`) have their weights on grids and compute in float.
Everything that stays in float is named in the plan, with the reason; contractions that belong to no site are one line.
"""

from jaxdq.linen._acts import Acts as Acts
from jaxdq.linen._acts import unfitted_acts as unfitted_acts
from jaxdq.linen._acts import with_one_partition as with_one_partition
from jaxdq.linen._apply import Visitor as Visitor
from jaxdq.linen._apply import apply as apply
from jaxdq.linen._apply import apply_dynamic as apply_dynamic
from jaxdq.linen._apply import apply_visited as apply_visited
from jaxdq.linen._apply import dequantize_params as dequantize_params
from jaxdq.linen._attention import DotProductAttention as DotProductAttention
from jaxdq.linen._attention import queries_at_a_time as queries_at_a_time
from jaxdq.linen._belonging import Leaf as Leaf
from jaxdq.linen._belonging import check_belongs as check_belongs
from jaxdq.linen._belonging import leaves_of as leaves_of
from jaxdq.linen._blocks import Block as Block
from jaxdq.linen._blocks import Blocks as Blocks
from jaxdq.linen._blocks import check_patterns as check_patterns
from jaxdq.linen._blocks import cut_into_blocks as cut_into_blocks
from jaxdq.linen._blocks import values_at_blocks as values_at_blocks
from jaxdq.linen._correction import Correction as Correction
from jaxdq.linen._correction import output_std_of as output_std_of
from jaxdq.linen._coverage import check_coverage as check_coverage
from jaxdq.linen._einsum import Einsum as Einsum
from jaxdq.linen._handlers import call_on_codes as call_on_codes
from jaxdq.linen._handlers import call_on_integers as call_on_integers
from jaxdq.linen._kinds import inputs_of as inputs_of
from jaxdq.linen._kinds import is_attention as is_attention
from jaxdq.linen._macs import count_macs as count_macs
from jaxdq.linen._parts import Parts as Parts
from jaxdq.linen._parts import along_parts as along_parts
from jaxdq.linen._parts import call_on_parts as call_on_parts
from jaxdq.linen._parts import cut_codes as cut_codes
from jaxdq.linen._parts import dequantize_kernel as dequantize_kernel
from jaxdq.linen._parts import fit_in_parts as fit_in_parts
from jaxdq.linen._parts import one_for_each_part as one_for_each_part
from jaxdq.linen._parts import round_parts as round_parts
from jaxdq.linen._plan import Column as Column
from jaxdq.linen._plan import Plan as Plan
from jaxdq.linen._plan import SitePlan as SitePlan
from jaxdq.linen._plan import on_pieces as on_pieces
from jaxdq.linen._quantized import Calibration as Calibration
from jaxdq.linen._quantized import Instead as Instead
from jaxdq.linen._quantized import OtherActs as OtherActs
from jaxdq.linen._quantized import QuantizedParams as QuantizedParams
from jaxdq.linen._quantized import check_dtype as check_dtype
from jaxdq.linen._quantized import quantize as quantize
from jaxdq.linen._rows import kernel_from_matrix as kernel_from_matrix
from jaxdq.linen._rows import kernel_matrix as kernel_matrix
from jaxdq.linen._rows import layers_of as layers_of
from jaxdq.linen._rows import rows_of as rows_of
from jaxdq.linen._rows import without_rows as without_rows
from jaxdq.linen._rules import Rule as Rule
from jaxdq.linen._rules import make_plan as make_plan
from jaxdq.linen._sharding import shard_by_output as shard_by_output
from jaxdq.linen._sites import Site as Site
from jaxdq.linen._sites import find_sites as find_sites
from jaxdq.linen._switch import Switch as Switch
from jaxdq.linen._tables import TimeTable as TimeTable
from jaxdq.linen._tables import check_times as check_times
from jaxdq.linen._tables import tables_in as tables_in
from jaxdq.linen._time import grids_at as grids_at
from jaxdq.linen._time import time_argument as time_argument
from jaxdq.linen._time_only import layers_of_time as layers_of_time
from jaxdq.linen._tree import kernel_at as kernel_at
from jaxdq.linen._tree import params_at as params_at
from jaxdq.linen._tree import with_kernels as with_kernels
from jaxdq.linen._tree import with_leaves as with_leaves
from jaxdq.linen._units import Unit as Unit
from jaxdq.linen._units import at_paths as at_paths
from jaxdq.linen._units import at_units as at_units
from jaxdq.linen._units import tap as tap
from jaxdq.linen._units import units_of as units_of
