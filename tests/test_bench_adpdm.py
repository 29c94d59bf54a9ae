import json

import pytest
from scripts_by_name import script
from toys import toy_denoiser

bench, kept, provenance = script("bench_adpdm"), script("bench_rows"), script("provenance")

FIGURES = {figure: 30.0 for figure, *_ in bench.COLUMNS}
LOG = [["search_groups", {"proxy": {"one group": 4.0, "equal spans": 2.5, "search": 2.2, "dynamic programming": 2.0}}]]


@pytest.fixture
def made(monkeypatch):
    """The labels' parts of the rows that are measured, in order; nothing is calibrated."""
    rows = []

    class Shared:
        def __init__(self, denoiser, sampler, seed, num_images):
            self.name, self.seed = denoiser.name, seed

        def row(self, bits, name, groups, budget):
            rows.append((self.name, bits, name, groups, self.seed))
            return {**FIGURES, "image_psnr_db": 30.0 + self.seed, "log": LOG if name == "adpdm" else []}

    monkeypatch.setattr(bench, "Shared", Shared)
    denoisers = {name: toy_denoiser() for name in ("one", "two")}
    for name, denoiser in denoisers.items():
        object.__setattr__(denoiser, "name", name)
    monkeypatch.setattr(bench, "load", denoisers.__getitem__)
    return rows


def run(tmp_path, *options):
    bench.main(["--json", str(tmp_path / "rows.json"), "--steps", "4", "--groups", "2", "4", *options])


SMALL = ["--model", "one", "--methods", "minmax", "adpdm", "--bits", "W6A6"]


def test_rows_that_decide_come_first(tmp_path, made):
    run(tmp_path, "--model", "one", "two", "--methods", "minmax", "uniform", "--seeds", "2")
    decisive = [row for row in made if row[1] in ("W6A6", "W4A4")]
    assert made[: len(decisive)] == decisive and len(made) == len(set(made)) == 2 * 4 * 3 * 2
    seeds = [row[-1] for row in decisive]
    assert seeds == sorted(seeds)
    assert {row[0] for row in decisive[:12]} == {"one", "two"}, "all models' first seed comes before any second one"
    assert {row[3] for row in made if row[2] == "minmax"} == {1}, "one group is one row, however many are asked for"


def test_a_run_that_was_stopped_goes_on(tmp_path, made):
    run(tmp_path, *SMALL)
    assert [row[2:4] for row in made] == [("minmax", 1), ("adpdm", 2), ("adpdm", 4)]
    run(tmp_path, *SMALL, "--seeds", "2")
    assert [row[4] for row in made[3:]] == [1, 1, 1]


@pytest.mark.parametrize("changed", ["digest_of_sources", "digest_of_model"])
def test_rows_of_other_sources_or_another_model_are_made_again_and_not_shown(
    tmp_path, made, monkeypatch, capsys, changed
):
    run(tmp_path, *SMALL)
    monkeypatch.setattr(kept, changed, lambda *args: "another")
    run(tmp_path, *SMALL, "--show")
    assert "0 of 3 rows; 3 more are stale" in capsys.readouterr().out and len(made) == 3
    run(tmp_path, *SMALL)
    assert len(made) == 6
    assert "3 of 3 rows; 0 more are stale" in capsys.readouterr().out


def test_rows_without_a_digest_are_stale(tmp_path, made):
    run(tmp_path, *SMALL)
    path = tmp_path / "rows.json"
    rows = {
        label: {key: row[key] for key in row if key != "digest"} for label, row in json.loads(path.read_text()).items()
    }
    path.write_text(json.dumps({**rows, "of another bench": {}}))
    run(tmp_path, *SMALL)
    assert len(made) == 6 and "of another bench" in json.loads(path.read_text()), "what was not asked for stays"


def test_the_table_has_mean_and_deviation_and_gains_in_decibels(tmp_path, made, capsys):
    run(tmp_path, *SMALL, "--seeds", "2", "--figure", str(tmp_path / "rows.png"))
    said = capsys.readouterr().out
    assert "30.5 ± 0.7" in said and "median" in said and "worst 5%" in said and "other noise" in said
    # 10 log10 (4 / 2.2) of 10 log10 (4 / 2)
    assert said.count("2.60 of 3.01 dB (86%)") == 2
    assert (tmp_path / "rows.png").exists()


def test_rows_depend_on_what_makes_them_and_on_no_other_method():
    behind = {file.relative_to(bench.ROOT).as_posix() for file in provenance.sources_behind(bench.ROOT, *bench.BEHIND)}
    assert {"jaxdq/calibration/_groups.py", "jaxdq/ops/_dot.py", "jaxdq/grid/_affine.py"} < behind
    assert {"jaxdq/diffusion/_ddim.py", "scripts/adpdm_rows.py"} < behind
    assert not {"jaxdq/recipes/_adpdm.py", "jaxdq/app/run.py", "scripts/bench_adpdm.py"} & behind


def test_clipped_baselines_stand_beside_min_max_ones():
    methods = bench.METHODS
    assert [methods[name].is_plain for name in ("minmax", "uniform", "mse", "uniform-mse")] == [
        True,
        True,
        False,
        False,
    ]
    assert [methods[name].num_groups for name in ("minmax", "uniform", "mse", "uniform-mse")] == [1, None, 1, None]
