import copy
import json

import pytest
import torch

from benchmarks import claims, claims_page, pages

FD = {"fixed sigma": 500.0, "learned sigma": 300.0, "two-stage": 100.0}


def _run(part, name, seed, value, **more):
    settings = {"part": part, "name": name, "seed": seed, **claims.PARTS[part]}
    common = {"settings": settings, "seconds": 1.0, "train_seconds": 1.0, "train_images": 60000, "test_images": 1000}
    if part != "fashion":
        common["nll"] = {"value": value, "low": value - 1.5, "high": value + 1.5}
    return common | {"parameters": 1} | more


def _results():
    """Numbers that agree with every claim, and IWAE nearer to the published value the longer it trains."""
    runs = []
    for seed in range(3):
        runs += [_run("nll", n, seed, 7 + 0.01 * seed + p.nll) for n, p in claims_page.PUBLISHED.items()]
        for depth in (1, 2, 3):
            bound = {"value": 100.0 - depth + 0.1 * seed}
            more = {"negative_elbo": bound, "kl_by_level": [1.0] * depth, "latents": depth}
            runs.append(_run("ladder", str(depth), seed, 95.0 - 2 * depth + 0.1 * seed, **more))
        row = pages.packed(torch.full((claims.SHOWN, 1, 28, 28), seed, dtype=torch.uint8))
        for name in claims.SIGMAS:
            sets = {"training images", name} | ({"two-stage"} if name == "learned sigma" else set())
            distances = {n: FD.get(n, 20.0) + seed for n in sets}
            shown = dict.fromkeys(sets, row) if seed == 0 else {}
            runs.append(_run("fashion", name, seed, None, frechet_distance=distances, shown=shown))
    for (name, factor), gap in zip(claims_page.LENGTHS.items(), (30.0, 3.0), strict=True):
        run = _run("nll", name, 0, claims_page.PUBLISHED["IWAE"].nll + gap)
        run["settings"]["steps"] = int(factor * run["settings"]["steps"])
        runs.append(run)
    about = {"machine": {"cpu": "a CPU", "cores": 2}, "versions": {"vaefast": "1", "torch": "2"}, "commit": "0" * 40}
    return about | {"dirty": False, "date": "today", "data": dict.fromkeys(claims.PARTS, "MNIST"), "runs": runs}


def _swapped(results, part, a, b):
    """The same numbers, with those of the runs named a and b exchanged."""
    results = copy.deepcopy(results)
    for run in results["runs"]:
        about = run["settings"]
        if about["part"] == part:
            about["name"] = {a: b, b: a}.get(about["name"], about["name"])
        if part == "fashion" and about["part"] == part:
            run["frechet_distance"] = {{a: b, b: a}.get(n, n): v for n, v in run["frechet_distance"].items()}
    return results


def test_report_makes_page_and_pictures_of_the_stored_numbers_alone(tmp_path):
    results = _results()
    (tmp_path / "claims.json").write_text(json.dumps(results))
    assert claims.main(["--report", "--results", str(tmp_path)]) == 0
    page = (tmp_path / "claims.md").read_text()
    assert page == claims_page.page(results)
    assert "| IWAE | 84.78 | 91.79 ± 0.025 | +7.01 |" in page
    pictures = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert sorted(pictures) == ["claims-fashion.png", "claims-ladder.png", "claims-nll.png"]
    assert all(f"({name})" in page and content.startswith(b"\x89PNG") for name, content in pictures.items())


@pytest.mark.parametrize(
    ("part", "verdicts", "a", "b", "pair"),
    [
        ("nll", claims_page.nll_verdicts, "IWAE", "VAE", "IWAE below VAE"),
        ("fashion", claims_page.fashion_verdicts, "two-stage", "learned sigma", "two-stage below learned sigma"),
        ("ladder", claims_page.ladder_verdicts, "3", "2", "3 levels below 2"),
    ],
)
def test_statements_flip_when_the_numbers_flip(part, verdicts, a, b, pair):
    agreeing = _results()
    assert set(verdicts(agreeing).values()) == {"agrees"}
    assert f"{pair}: **agrees**" in claims_page.page(agreeing)
    flipped = _swapped(agreeing, part, a, b)
    assert verdicts(flipped)[pair] == "disagrees"
    assert f"{pair}: **disagrees**" in claims_page.page(flipped)
    others = [{**run, "settings": {**run["settings"], "seed": 0}} for run in agreeing["runs"]]
    assert set(verdicts({**agreeing, "runs": others}).values()) == {"unclear"}  # one seed proves nothing


def test_training_length_is_the_cause_only_where_longer_is_nearer():
    agreeing = _results()
    assert "training length is a cause, and 3.00 nats are left" in claims_page.page(agreeing)
    flipped = _swapped(agreeing, "nll", *claims_page.LENGTHS)
    for run in flipped["runs"]:
        for name, factor in claims_page.LENGTHS.items():
            if run["settings"]["name"] == name:
                run["settings"]["steps"] = int(factor * claims.PARTS["nll"]["steps"])
    assert "does not always bring it nearer" in claims_page.page(flipped)


def test_a_ladder_of_fewer_levels_differs_in_nothing_else():
    x = torch.bernoulli(torch.rand(2, 1, 28, 28))
    for levels, latents in ((1, 16), (2, 114), (3, 506)):
        torch.manual_seed(0)
        model = claims.ladder(levels, (1, 28, 28))
        output = model(x, seed=1)
        assert model.latent_shape == (latents,)
        assert output.kl_by_level.shape == (2, levels)
        assert output.decoded.shape == x.shape
