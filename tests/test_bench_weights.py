import pytest
from scripts_by_name import script
from toys import toy_denoiser

bench, rows, provenance = script("bench_weights"), script("weights_rows"), script("provenance")
bench_rows = script("bench_rows")


@pytest.fixture
def made(monkeypatch):
    """The rows that are measured, in order; nothing is calibrated."""
    made = []

    class Weights:
        def __init__(self, denoiser, sampler, seed, num_images, split):
            self.seed, self.split = seed, split

        blocks_row = budget_row = None

        def weights_row(self, bits, name):
            made.append((bits, name if self.split else f"{name}, whole", self.seed))
            return {figure: 30.0 + self.seed for figure, *_ in bench_rows.COLUMNS}

    monkeypatch.setattr(bench.budget_rows, "Budgets", Weights)
    monkeypatch.setattr(bench, "load", lambda name: toy_denoiser())
    return made


def run(tmp_path, *options):
    bench.main(
        ["--json", str(tmp_path / "rows.json"), "--bits", "W4A8", "W4", "--methods", "nearest", "gptq", *options]
    )


@pytest.mark.slow
def test_the_first_seed_of_all_rows_comes_first_and_a_stopped_run_goes_on(tmp_path, made, capsys):
    run(tmp_path)
    assert made == [("W4A8", "nearest", 0), ("W4A8", "gptq", 0), ("W4", "nearest", 0), ("W4", "gptq", 0)]
    run(tmp_path, "--seeds", "2")
    assert [seed for *_, seed in made[4:]] == [1] * 4
    run(tmp_path, "--seeds", "2", "--show")
    said = capsys.readouterr().out
    bench.main(["--json", str(tmp_path / "rows.json"), "--bits", "W4", "--methods", "gptq-whole"])
    assert made.pop() == ("W4", "gptq, whole", 0)
    assert len(made) == 8 and "30.50 ± 0.71" in said and "8 of 8 rows; 0 more are stale" in said


@pytest.mark.parametrize(("method", "source"), [("gptq", "_rounding"), ("qdiffusion", "_reconstruction")])
def test_rows_depend_on_what_makes_them(method, source):
    behind = provenance.sources_behind(bench.ROOT, *bench.BEHIND[method])
    assert bench.ROOT / "jaxdq" / "calibration" / f"{source}.py" in behind
    assert (bench.ROOT / "jaxdq" / "calibration" / "_reconstruction.py" in behind) == (method == "qdiffusion")


def test_bits_without_activations_leave_those_in_float():
    denoiser = toy_denoiser()
    for bits, act_bits in (("W4A8", {8}), ("W4", set())):
        plan = rows.plan_for(denoiser, rows.Recipe("toy", rows.rules_of(bits), ()))
        assert {site.act.bits for site in plan.sites if site.act} == act_bits
        assert 4 in {site.weight.bits for site in plan.sites if site.weight}
    with pytest.raises(SystemExit, match="give them as W4A8"):
        rows.rules_of("4x8")
