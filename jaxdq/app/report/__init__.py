"""The results of a run: its numbers, its pictures and its page."""

from jaxdq.app.report._folder import QUANTIZED as QUANTIZED
from jaxdq.app.report._folder import check_free as check_free
from jaxdq.app.report._folder import staged as staged
from jaxdq.app.report._metrics import METRICS as METRICS
from jaxdq.app.report._metrics import measured as measured
from jaxdq.app.report._metrics import read_metrics as read_metrics
from jaxdq.app.report._metrics import to_json_values as to_json_values
from jaxdq.app.report._metrics import write_metrics as write_metrics
from jaxdq.app.report._page import nice_bytes as nice_bytes
from jaxdq.app.report._page import write_pages as write_pages
from jaxdq.app.report._samples import image_grid as image_grid
from jaxdq.app.report._samples import paired_grid as paired_grid
from jaxdq.app.report._seen import seen as seen
from jaxdq.app.report._sizes import SizeRow as SizeRow
from jaxdq.app.report._sizes import planned_bytes as planned_bytes
from jaxdq.app.report._sizes import size_rows as size_rows
