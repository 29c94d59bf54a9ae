import jax

from jaxdq import stored_bytes
from jaxdq.app import report
from jaxdq.calibration import plan_for
from jaxdq.recipes import minmax


def test_rows_add_up_to_both_models(measured):
    rows = report.size_rows(measured.denoiser.params, measured.qparams)
    assert sum(row.float_bytes for row in rows) == stored_bytes(measured.denoiser.params)
    assert sum(row.quantized_bytes for row in rows) == stored_bytes(measured.qparams)


def test_rows_name_the_kinds_of_layers(measured):
    rows = {row.label: row for row in report.size_rows(measured.denoiser.params, measured.qparams)}
    assert rows["3x3 convolutions"].quantized_bytes < rows["3x3 convolutions"].float_bytes / 2
    kept = rows["3x3 convolutions, float"]
    assert kept.float_bytes == kept.quantized_bytes
    assert rows["activation scales and time groups"].float_bytes == 0


def test_planned_bytes_are_those_of_the_quantized_model(measured):
    qparams = measured.qparams
    abstract = jax.eval_shape(lambda: measured.denoiser.params)
    tables = stored_bytes((qparams.acts.scale, qparams.acts.zero_point, qparams.acts.group_of_t))
    one_group = stored_bytes((qparams.acts.scale[:1], qparams.acts.zero_point[:1], qparams.acts.group_of_t[:1]))
    assert report.planned_bytes(abstract, qparams.plan) == stored_bytes(qparams) - tables + one_group


def test_four_bits_take_less_than_eight(measured):
    plan = plan_for(measured.denoiser, minmax(weight_bits=4))
    assert report.planned_bytes(measured.denoiser.params, plan) < stored_bytes(measured.qparams)
