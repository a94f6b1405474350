"""The page of a run: what is in it, and how a browser shows it."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import math
import re
import shutil
import types

import chromium
import pytest
import torch
from PIL import Image

from vaefast.report import latent, page, svg
from vaefast.report.measures import Measure, compared, measures, number, table
from vaefast.runs import Run, RunError
from vaefast.training import Settings, run

EVALUATION = {
    "fd_lite0": {"value": 187.94, "low": 180.2, "high": 195.3, "direction": "lower"},
    "coverage": {"value": 0.352, "low": 0.331, "high": 0.371, "direction": "higher"},
    "extractor": "efficientnet-lite0",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run, with a name that HTML must not take for its own, and an evaluation."""
    folder = tmp_path_factory.mktemp("runs") / "R&D <b>"
    run(Settings(output=str(folder), epochs=3, batch_size=500, latent=3), lambda line: None)
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    return folder


@pytest.fixture(scope="module")
def document(folder):
    return page([Run(folder)])


class Tags(html.parser.HTMLParser):
    """Fails on a tag that closes another one."""

    def __init__(self, document: str):
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(document)

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_needs_nothing_else(document):
    tags = Tags(document)
    assert tags.open == []
    assert "<script" not in document
    assert "url(" not in document
    links = [value for name, value in tags.attributes if name in ("src", "href")]
    assert links
    assert all(link.startswith("data:") for link in links)


def test_the_page_says_what_the_run_left(document, folder):
    shown = " ".join(Tags(document).text)
    metrics = json.loads((folder / "metrics.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    assert "R&D <b>" in shown
    assert number(metrics["held-out"]["elbo"]) in shown
    assert f"{metrics['active_units']} of 3" in shown
    assert config["versions"]["torch"] in shown
    for name in config["settings"]:
        assert name.replace("_", " ") in shown
    assert "188 [180,\N{NO-BREAK SPACE}195]" in shown
    assert "0.352 [0.331,\N{NO-BREAK SPACE}0.371]" in shown
    assert document.count("<polyline") == 2 * len(metrics["history"][0]["train"])
    assert document.count("<circle") == 500  # all that is held out


def test_the_pictures_are_the_models(document, folder):
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", document)
    sizes = [Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in pictures]
    side, strip = 2 * (10 * 30 + 2), (2 * (9 * 30 + 2), 2 * 32)
    assert sizes == [(side, side), (side, side), strip, strip, strip]


def test_a_page_of_several_runs_compares_them(folder):
    document = page([Run(folder), Run(folder)])
    assert Tags(document).open == []
    assert "<h1>2 runs</h1>" in document
    assert document.count("<h2>Samples</h2>") == 2
    assert "fd lite0 ↓" in document


def test_a_run_without_evaluation_says_how_to_make_one(folder):
    opened = Run(folder)
    opened.evaluation = {}
    assert "vaefast evaluate" in page([opened])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", r"config\.json cannot be read"),
        ("metrics.json", "", r"metrics\.json cannot be read"),
        ("checkpoint.safetensors", "cut", "cannot be loaded: .*not a whole safetensors file"),
    ],
)
def test_a_damaged_run_is_named(name, content, message, folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(RunError, match=message):
        Run(tmp_path)


def test_a_run_without_its_configuration_knows_no_data(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").unlink()
    run = Run(tmp_path)
    assert run.samples(2).shape[0] == 2
    with pytest.raises(RunError, match=r"was trained on is not known: it has no config\.json"):
        _ = run.data


# --- charts ---


def test_a_line_goes_where_its_numbers_are():
    chart = svg.lines({"a": [0.0, 1.0, 2.0]}, "x", "y", "three points")
    (points,) = re.findall(r'points="([^"]+)"', chart)
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in points.split())
    assert x0 < x1 < x2
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y0 > y1 > y2  # SVG counts downwards
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    assert {">0<", ">1<", ">2<"} <= set(re.findall(r">[\d.]+<", chart))


def test_a_steep_beginning_does_not_flatten_the_rest():
    values = [1e6, *[10.0 - 0.1 * n for n in range(29)]]
    (points,) = re.findall(r'points="([^"]+)"', svg.lines({"a": values}, "x", "y", ""))
    heights = [float(point.split(",")[1]) for point in points.split()]
    assert heights[-1] - heights[3] > 150
    assert heights[0] < 0  # cut off above


def test_values_that_are_not_finite_and_flat_lines():
    chart = svg.lines({"a": [math.nan, 1.0, math.inf, 1.0], "b": [math.nan] * 4}, "x", "y", "")
    assert [len(points.split()) for points in re.findall(r'points="([^"]*)"', chart)] == [2, 0]
    assert "nan" not in chart
    assert "inf" not in chart


def test_every_class_has_its_colour_and_its_name():
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
    chart = svg.scatter(points, torch.tensor([3, 3, 7, 3]), "x", "y", "")
    groups = re.findall(r'<g class="dots s(\d)">(.*?)</g>', chart)
    assert [(number, body.count("<circle")) for number, body in groups] == [("0", 3), ("1", 1)]
    assert re.findall(r'class="name"[^>]*>(\d)<', chart) == ["3", "7"]


@pytest.mark.parametrize(("low", "high", "ticks"), [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-3, 130, [0, 50, 100])])
def test_ticks_are_round(low, high, ticks):
    assert svg._Axis(low, high, 0, 1).ticks == pytest.approx(ticks)


# --- the latent ---


def test_a_latent_of_two_dimensions_is_its_own_map():
    means = torch.randn(20, 2)
    assert torch.equal(latent.latent_map(means).points, means)


def test_the_map_of_many_dimensions_is_their_principal_components():
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(300, 2, generator=generator) * torch.tensor([5.0, 2.0])
    basis = torch.linalg.qr(torch.randn(6, 2, generator=generator)).Q
    found = latent.latent_map(plane @ basis.T + 1)
    assert found.explained == pytest.approx(1, abs=1e-5)
    distances, expected = ((p[:, None] - p).norm(dim=2) for p in (found.points, plane))
    assert torch.allclose(distances, expected, atol=1e-4)
    assert found.points[:, 0].var() > found.points[:, 1].var()


def test_a_walk_moves_one_dimension_and_the_best_comes_first():
    model = types.SimpleNamespace(latent_shape=(3,), decode=lambda z: z)
    means, kls = torch.tensor([[0.1, 0.2, 0.3]]), torch.tensor([1.0, 0.0, 2.0])
    first, second = latent.traversals(model, means, kls, count=2, steps=3)
    assert (first.name, second.name) == ("z3, KL 2.00", "z1, KL 1.00")
    assert torch.allclose(first.images, torch.tensor([[0.1, 0.2, -3], [0.1, 0.2, 0], [0.1, 0.2, 3]]))


def test_without_a_standard_normal_prior_the_widest_spread_comes_first():
    model = types.SimpleNamespace(latent_shape=(2,), decode=lambda z: z)
    means = torch.tensor([[-1.0, 0.0], [0.0, 0.5], [1.0, 1.0]])
    first, second = latent.traversals(model, means, None, steps=3)
    assert (first.name, second.name) == ("z1, spread 1.00", "z2, spread 0.50")
    assert torch.allclose(second.images, torch.tensor([[0, -1.5], [0, 0], [0, 1.5]]))


def test_a_latent_of_several_axes_is_walked_along_its_components():
    model = types.SimpleNamespace(latent_shape=(1, 2, 1), decode=lambda z: z)
    means = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    (walk, _) = latent.traversals(model, means, torch.zeros(2), count=2, steps=3)
    assert walk.images.shape == (3, 1, 2, 1)
    assert torch.allclose(walk.images.flatten(1).abs(), torch.tensor([[3.0, 0], [0, 0], [3, 0]]), atol=1e-6)


def test_the_kl_of_each_dimension():
    posterior = types.SimpleNamespace(mean=torch.tensor([[1.0, 0.0], [3.0, 0.0]]), logvar=torch.zeros(2, 2))
    model = torch.nn.Linear(1, 1)
    model.encode = lambda x: posterior
    means, kls = latent.encode(model, torch.zeros(2, 1))
    assert torch.equal(means, posterior.mean)
    assert kls.tolist() == [2.5, 0]


# --- measures ---


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1,234"), (99.96, "100"), (12.34, "12.3"), (1.0, "1.00"), (0.5, "0.500"), (0.01234, "0.0123"),
     (-126.1, "-126"), (0.0, "0"), (1e-5, "1.00e-05"), (4e-19, "0"), (7, "7"), (math.nan, "nan")],
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_only_entries_with_a_value_are_measures():
    assert list(measures(EVALUATION)) == ["fd_lite0", "coverage"]


@pytest.mark.parametrize(
    ("direction", "mine", "other", "better"),
    [
        ("higher", (2, 3), (0, 1), True),
        ("higher", (0, 1), (2, 3), False),
        ("higher", (2, 4), (1, 3), False),  # the intervals meet
        ("lower", (0, 1), (2, 3), True),
        ("", (0, 1), (2, 3), False),
        ("lower", (None, None), (2, 3), False),
        ("real", (4, 7), (0, 1), True),  # what is best is 5
        ("real", (8, 9), (0, 0.9), True),
        ("real", (8, 9), (0, 2.5), False),
    ],
)
def test_better_means_by_more_than_the_intervals(direction, mine, other, better):
    assert Measure("m", 0, *mine, direction, 5.0).beats(Measure("m", 0, *other, direction, 5.0)) is better


def test_as_real_needs_to_know_what_is_real():
    assert not Measure("m", 0, 5, 6, "real").beats(Measure("m", 0, 0, 1, "real"))


def test_two_extractors_are_two_rows():
    lite, inception = ({"fd": Measure(f"FD-{name}", 1.0, direction="lower")} for name in ("lite0", "inception"))
    assert compared([lite, inception]) == {
        "FD-lite0 ↓": [("1.00", False), ("–", False)],
        "FD-inception ↓": [("–", False), ("1.00", False)],
    }


def test_runs_are_compared_measure_by_measure():
    a = {"fd": Measure("fd", 1.0, 0.9, 1.1, "lower")}
    b = {"fd": Measure("fd", 2.0, 1.9, 2.1, "lower"), "nll": Measure("nll", 80.0, None, None, "lower")}
    assert compared([a, b]) == {
        "fd ↓": [("1.00 [0.900,\N{NO-BREAK SPACE}1.10]", True), ("2.00 [1.90,\N{NO-BREAK SPACE}2.10]", False)],
        "nll ↓": [("–", False), ("80.0", False)],
    }


def test_a_markdown_table():
    assert table([["", "a|b"], ["row", "1"]]) == "|     | a\\|b |\n|-----|-----:|\n| row |    1 |"


# --- in a browser ---


@pytest.mark.skipif(chromium.PATH is None, reason="no Chromium here (Debian: apt-get install chromium)")
def test_a_browser_shows_it_on_a_phone_on_a_desk_and_on_paper(document, folder, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page([Run(folder), Run(folder)]))
    with chromium.Page(path, tmp_path / "profile") as shown:
        for width, dark in ((320, False), (360, True), (800, False), (1440, False)):
            shown.open(width, dark=dark)
            assert shown.evaluate("document.scrollingElement.scrollWidth") <= width
            assert shown.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
            ground = shown.evaluate("getComputedStyle(document.body).backgroundColor")
            assert ground == ("rgb(21, 23, 27)" if dark else "rgb(255, 255, 255)")
            columns = shown.evaluate("getComputedStyle(document.querySelector('.halves')).gridTemplateColumns")
            assert len(columns.split()) == (1 if width < 830 else 2)
        picture = Image.open(io.BytesIO(shown.screenshot()))
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 100
        assert shown.pdf().startswith(b"%PDF")
        assert shown.problems == []


@pytest.mark.skipif(chromium.PATH is None, reason="no Chromium here (Debian: apt-get install chromium)")
def test_the_browser_sees_what_is_wrong(tmp_path):
    path = tmp_path / "page.html"
    wrong = '<script>console.error("oh")</script><img src="gone.png"><div style="width: 900px">wide</div>'
    path.write_text(f'<!doctype html><meta name="viewport" content="width=device-width">{wrong}')
    with chromium.Page(path, tmp_path / "profile") as shown:
        shown.open(360)
        assert shown.evaluate("document.scrollingElement.scrollWidth") > 360
        assert any("oh" in problem for problem in shown.problems)
        assert any("gone.png" in problem for problem in shown.problems)
