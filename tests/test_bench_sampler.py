import pytest
from scripts_by_name import script
from toys import toy_denoiser

from jaxdq.diffusion import ddim, dpm_solver

bench, rows, bench_rows = script("bench_sampler"), script("sampler_rows"), script("bench_rows")


@pytest.mark.parametrize(
    ("text", "sampler"),
    [("ddim50", ddim(50)), ("ddim20:1", ddim(20, eta=1.0)), ("dpm_solver20", dpm_solver(20))],
)
def test_samplers_are_a_name_and_steps(text, sampler):
    assert rows.sampler_of(text) == sampler


@pytest.mark.parametrize("text", ["heun20", "ddim", "pndm20:1", "50"])
def test_what_is_no_sampler_is_refused(text):
    with pytest.raises(SystemExit, match="give a name of ddim"):
        rows.sampler_of(text)


def test_the_first_seed_of_all_rows_comes_first_and_a_stopped_run_goes_on(tmp_path, monkeypatch, capsys):
    made = []

    class Sampled:
        def __init__(self, denoiser, sampler, seed, num_images):
            self.seed = seed

        def sampler_row(self, bits, name):
            made.append((bits, name, self.seed))
            return {figure: 30.0 + self.seed for figure, *_ in bench_rows.COLUMNS}

    monkeypatch.setattr(bench, "Sampled", Sampled)
    monkeypatch.setattr(bench, "load", lambda name: toy_denoiser())
    asked = ["--json", str(tmp_path / "rows.json"), "--bits", "W4A8", "--samplers", "ddim4", "--methods", "none", "tac"]
    bench.main([*asked, "--seeds", "2"])
    assert made == [("W4A8", "none", 0), ("W4A8", "tac", 0), ("W4A8", "none", 1), ("W4A8", "tac", 1)]
    bench.main([*asked, "--seeds", "2", "--show"])
    said = capsys.readouterr().out
    assert len(made) == 4 and "30.50 ± 0.71" in said and "4 of 4 rows; 0 more are stale" in said
