"""The study's page says what the stored numbers say, and says the contrary of the contrary."""

import copy
import json
import operator
import statistics

import pytest
import torch

from benchmarks import pages, pool, study, study_page

BETTER = {"sharpness_ratio": 0.9, "recall": 0.8, "coverage": 0.8, "frechet_distance": 100.0, "precision": 0.8}
WORSE = {"sharpness_ratio": 0.3, "recall": 0.5, "coverage": 0.5, "frechet_distance": 400.0, "precision": 0.5}


def _measures(values, seed):
    found = {name: {"value": value * (1 + 0.01 * seed)} for name, value in values.items()}
    found["duplicate_rate"] = {"value": 0.05, "training_images": 0.05}
    return found | {"active_units": {"value": 16.0}, "nll": {"value": -300.0}}


def _results():
    """Every variant as good as its rival, but the residual one, which is better."""
    images = pages.packed(torch.zeros(study_page.SHOWN, 1, 28, 28, dtype=torch.uint8))
    runs = []
    for name, variant in study.VARIANTS.items():
        values = BETTER if name.startswith("residual") else WORSE
        for seed in range(3):
            samplers = {
                sampler: {"measures": _measures(of, seed), "images": images}
                for sampler, of in [("normal", values), *[(s, BETTER) for s in variant.samplers]]
            }
            seconds = {"train_cpu_seconds": 1.0, "cpu_seconds": 1.0}
            runs.append(
                {"variant": name, "seed": seed, "parameters": 1, "settings": {}, "samplers": samplers} | seconds
            )
    about = {"machine": {"cpu": "a CPU", "cores": 2}, "versions": {"torch": "2"}, "commit": "0" * 40, "date": "today"}
    sizes = {"train_images": 1, "test_images": 1, "samples": 1, "steps": 1, "batch_size": 1, "latent": 1}
    sizes["cpu_seconds"] = 60.0
    variants = {n: v._asdict() for n, v in study.VARIANTS.items()}
    return about | sizes | {"variants": variants, "attainable": BETTER, "runs": runs}


def _row(page, name):
    """The cells of a remedy's line."""
    table = page[page.index("## What each remedy does") :]
    return next(line for line in table.splitlines() if line.startswith(f"| {name} |"))


def test_report_makes_page_and_pictures_of_the_stored_numbers_alone(tmp_path):
    results = _results()
    (tmp_path / "study.json").write_text(json.dumps(results))
    assert study.main(["--report", "--results", str(tmp_path)]) == 0
    assert (tmp_path / "study.md").read_text() == study_page.page(results)
    assert {p.name for p in tmp_path.glob("*.png")} == {"study-samples.png", "study-distances.png"}


def test_statements_follow_the_numbers():
    results = _results()
    page = study_page.page(results)
    assert "400 → 100 (-75 %) **helps**" in _row(page, "residual").replace("404", "400").replace("101", "100")
    assert _row(page, "beta = 4").count("no change") == len(study_page.MEASURES)
    assert "FD at least 25 % lower: 75 % lower. **met**" in page
    assert "+ GAN: precision and sharpness higher, recall not below: precision 0.51 → 0.51" in page

    swapped = copy.deepcopy(results)
    names = {"residual": "optimal sigma", "optimal sigma": "residual"}
    for run in swapped["runs"]:
        run["variant"] = names.get(run["variant"], run["variant"])
    page = study_page.page(swapped)
    assert _row(page, "residual").count("**hurts**") == len(study_page.MEASURES) - 1  # all are active in both
    assert "FD at least 25 % lower: -300 % lower. **missed**" in page


@pytest.mark.parametrize(
    ("measure", "with_it", "without", "verdict"),
    [
        ("frechet_distance", [90.0, 91.0, 92.0], [100.0, 101.0, 102.0], "helps"),
        ("recall", [0.5, 0.51, 0.52], [0.6, 0.61, 0.62], "hurts"),
        ("recall", [0.5, 0.7, 0.6], [0.6, 0.6, 0.6], "unclear"),  # the seeds disagree
        ("recall", [0.61, 0.9, 0.62], [0.6, 0.6, 0.6], "unclear"),  # they agree, the interval does not
        ("recall", [0.9], [0.1], "unclear"),  # one seed
        ("sharpness_ratio", [1.2, 1.21, 1.2], [0.5, 0.5, 0.51], "helps"),  # nearer to 1
        ("sharpness_ratio", [2.5, 2.51, 2.5], [0.9, 0.9, 0.91], "hurts"),
        ("active_units", [16.0, 16.0], [16.0, 16.0], "no change"),
    ],
)
def test_effect(measure, with_it, without, verdict):
    assert study_page.effect(with_it, without, measure)[1] == verdict


def test_numbers_have_so_many_digits_and_no_exponent():
    texts = [pages.number(v) for v in (1534.2, 58.61, 0.12345, 0.0, -7.5)]
    assert texts == ["1534", "58.6", "0.123", "0", "-7.50"]
    assert pages.spread([1.0, 2.0, 3.0]) == "2.00 ± 2.5"
    assert pages.half([1.0, 2.0, 3.0]) == pytest.approx(4.303 * statistics.stdev([1, 2, 3]) / 3**0.5)


def test_a_run_that_fails_stops_no_other_and_is_told(capsys):
    wanted = {"half": (1, 2), "no number": (1, 0), "double": (2, 1)}
    assert pool.run_all(operator.truediv, wanted, 1, "is {}".format) == [0.5, None, 2.0]
    told = [line.partition(" s  ")[2] for line in capsys.readouterr().err.splitlines()]
    assert told == ["1/3  half: is 0.5", "2/3  no number: ZeroDivisionError: division by zero", "3/3  double: is 2.0"]
