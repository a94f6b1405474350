"""A learned perceptual distance between images, and the diversity of samples under it."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from vaefast.metrics import estimate
from vaefast.metrics.estimate import Estimate
from vaefast.metrics.images import as_images, unit_images

PAIRS = 500
_SMALLEST = 32
PACKAGE = "stlpips_pytorch"
# the convolution's index in the checkpoint, its padding, and whether it is blurred before ReLU or pooled before all
_SLICES = ((0, 2, "blurred"), (5, 2, "pooled"), (9, 1, "pooled"), (11, 1, ""), (13, 1, ""))


def available() -> bool:
    """Whether the wheel is installed; it is looked for, not imported, since importing it needs torchvision."""
    return importlib.util.find_spec(PACKAGE) is not None


def version() -> str:
    return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"


class LPIPS(nn.Module):
    """Distance of images a, b [N, C, H, W] in [0, 1]: [N]; differentiable in both.

        sum_l mean_hw sum_c w_lc (a^l_chw - b^l_chw)^2,  a^l the l-th layer, of length 1 along c

    The shift-tolerant AlexNet of Ghildyal and Liu 2022 (arXiv 2207.13686), a descendant of Zhang et al. 2018 (arXiv
    1801.03924): trunk and heads come inside the wheel stlpips_pytorch (BSD-2; only its checkpoint is read). Range 0....
    Sides below 32 are enlarged to 32. It is ST-LPIPS: not comparable with LPIPS.

    Raises:
        ModuleNotFoundError: without the wheel (`pip install "vaefast[metrics]"`).
    """

    def __init__(self):
        super().__init__()
        if not available():
            raise ModuleNotFoundError(f'LPIPS needs {PACKAGE}: pip install "vaefast[metrics]"', name=PACKAGE)
        folder = importlib.util.find_spec(PACKAGE).submodule_search_locations[0]
        path = Path(folder, "weights", "vST0.0", "alex_shift_tolerant.pth")
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.register_buffer("shift", state["scaling_layer.shift"])
        self.register_buffer("scale", state["scaling_layer.scale"])
        self.register_buffer("blur", state["net.slice1.1.filt"][:1])
        self.convolutions, self.heads = nn.ModuleList(), nn.ParameterList()
        for i, (index, padding, _) in enumerate(_SLICES):
            weight = state[f"net.slice{i + 1}.{index}.weight"]
            convolution = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], padding=padding)
            convolution.load_state_dict({"weight": weight, "bias": state[f"net.slice{i + 1}.{index}.bias"]})
            self.convolutions.append(convolution)
            self.heads.append(state[f"lin{i}.model.1.weight"])
        self.eval().requires_grad_(False)

    def layers(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Of images in [0, 1], the five layers, each of length 1 along the channels."""
        side = min(x.shape[2:])
        if side < _SMALLEST:
            size = [round(n * _SMALLEST / side) for n in x.shape[2:]]
            x = functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        x = (2 * x - 1 - self.shift) / self.scale  # grey images get three channels here
        found = []
        for convolution, (_, _, before) in zip(self.convolutions, _SLICES, strict=True):
            if before == "pooled":
                x = self._halved(functional.max_pool2d(x, 3, 1))
            x = convolution(x)
            x = functional.relu(self._halved(x) if before == "blurred" else x)
            found.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        return found

    def _halved(self, x: torch.Tensor) -> torch.Tensor:
        blur = self.blur.expand(x.shape[1], -1, -1, -1)
        return functional.conv2d(functional.pad(x, (2,) * 4, "reflect"), blur, stride=2, groups=len(blur))

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        pairs = zip(self.layers(a), self.layers(b), self.heads, strict=True)
        return sum(((x - y).square() * head).sum(1).mean((1, 2)) for x, y, head in pairs)


@functools.lru_cache(maxsize=2)
def network(device: torch.device | str = "cpu") -> LPIPS:
    """The LPIPS network, loaded once; PyTorch's generator is where it was."""
    with torch.random.fork_rng(devices=[]):
        return LPIPS().to(device)


@torch.inference_mode()
def lpips_diversity(
    source, *, pairs: int = PAIRS, seed: int = 0, chunk: int = 50, device: torch.device | str = "cpu"
) -> Estimate:
    """Mean LPIPS distance of random pairs of different samples.

    Range 0..., higher is more diverse; right is what real images get. Interval over the pairs. Zhu et al. 2017 (arXiv
    1711.11586), section 4.

    Blind to quality, as noise is far from noise, and to repetition that a mean hides: 100 images repeated lose 1 %.

    Args:
        source: images as for `as_images`.
        pairs: how many; seed: which.
    """
    source, model = as_images(source), network(device)
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(len(source), (pairs,), generator=generator)
    second = (first + torch.randint(1, len(source), (pairs,), generator=generator)) % len(source)
    found = [
        model(unit_images(source[i]).to(device), unit_images(source[j]).to(device))
        for i, j in zip(first.split(chunk), second.split(chunk), strict=True)
    ]
    return estimate.mean(torch.cat(found))
