import json

from scripts_by_name import script
from toys import Line, toy_denoiser

bench = script("bench_sensitivity")


def test_says_how_far_seeds_differ(monkeypatch, capsys):
    monkeypatch.setattr(bench.models, "load", lambda name: toy_denoiser(Line()))
    bench.main("--model toy --steps 4 --seeds 2 --images 2 --draws 1".split())
    found = json.loads(capsys.readouterr().out)
    assert 1 <= found["deviation"]["median"] <= found["deviation"]["max"]
    assert len(found["last_tenth"]) == 2 and all(0 < share < 1 for share in found["last_tenth"])


def test_one_seed_agrees_with_itself(monkeypatch, capsys):
    monkeypatch.setattr(bench.models, "load", lambda name: toy_denoiser(Line()))
    bench.main("--model toy --steps 4 --seeds 1 --images 2 --draws 1".split())
    assert json.loads(capsys.readouterr().out)["deviation"] == {"median": 1.0, "max": 1.0}
