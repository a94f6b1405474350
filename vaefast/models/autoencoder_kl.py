"""The autoencoder of latent diffusion (Rombach et al. 2022), with the names of diffusers' AutoencoderKL.

Same modules, same keys in the state dict, same arithmetic: its checkpoints load, and ours load there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from vaefast.models import parts
from vaefast.models.vae import VAE

_EPS = 1e-6


class Resnet(nn.Module):
    """x + two of (group norm, activation, 3x3); a 1x1 on x where the channels change."""

    def __init__(self, channels: int, out: int, groups: int, activation: str):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, _EPS)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out, _EPS)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.nonlinearity = parts.activation(activation)
        self.conv_shortcut = nn.Conv2d(channels, out, 1) if channels != out else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(self.nonlinearity(self.norm1(x)))
        h = self.conv2(self.nonlinearity(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """Self-attention over the pixels, of one head, added to x."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, _EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.group_norm(x).flatten(2).transpose(1, 2)  # [B, H W, C]
        h = functional.scaled_dot_product_attention(*[f(h)[:, None] for f in (self.to_q, self.to_k, self.to_v)])[:, 0]
        return x + self.to_out[0](h).transpose(1, 2).unflatten(2, x.shape[2:])


class MidBlock(nn.Module):
    def __init__(self, channels: int, groups: int, activation: str, attention: bool):
        super().__init__()
        self.attentions = nn.ModuleList([Attention(channels, groups)] if attention else [])
        self.resnets = nn.ModuleList(Resnet(channels, channels, groups, activation) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2.0))


class Stage(nn.Module):
    """`count` Resnets, then a change of size, registered as `name`."""

    def __init__(self, channels: int, out: int, count: int, groups: int, activation: str, name: str, resize):
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(channels if i == 0 else out, out, groups, activation) for i in range(count))
        self.name = name
        if resize is not None:
            setattr(self, name, nn.ModuleList([resize(out)]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        for resize in getattr(self, self.name, ()):
            x = resize(x)
        return x


class Encoder(nn.Module):
    """x [B, in, H, W] -> [B, 2 latent, H / 2^n, W / 2^n], n = len(widths) - 1."""

    def __init__(
        self, channels: int, latent: int, widths: Sequence[int], layers: int, groups: int, act: str, attn: bool
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        before = [widths[0], *widths]
        resizes = [Downsample] * (len(widths) - 1) + [None]
        self.down_blocks = nn.ModuleList(
            Stage(a, b, layers, groups, act, "downsamplers", r)
            for a, b, r in zip(before, widths, resizes, strict=False)
        )
        self.mid_block = MidBlock(widths[-1], groups, act, attn)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], _EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * latent, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(functional.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """The way back, with a Resnet more in each stage."""

    def __init__(
        self, latent: int, channels: int, widths: Sequence[int], layers: int, groups: int, act: str, attn: bool
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(latent, widths[-1], 3, padding=1)
        self.mid_block = MidBlock(widths[-1], groups, act, attn)
        widths = widths[::-1]
        before = [widths[0], *widths]
        resizes = [Upsample] * (len(widths) - 1) + [None]
        self.up_blocks = nn.ModuleList(
            Stage(a, b, layers + 1, groups, act, "upsamplers", r)
            for a, b, r in zip(before, widths, resizes, strict=False)
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], _EPS)
        self.conv_out = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        z = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            z = block(z)
        return self.conv_out(functional.silu(self.conv_norm_out(z)))


class AutoencoderKL(VAE):
    """A VAE whose z is a small image. `load_state_dict` takes what diffusers' AutoencoderKL saved.

    Made by `autoencoder_kl` and `from_diffusers_config`. Published checkpoints are for float images in -1…1; uint8
    images stand for 0…1 here as everywhere, which a model that is trained here may take.
    """

    def __init__(self, encoder, decoder, latent_shape, likelihood=None, prior=None, *, quant=True, post_quant=True):
        super().__init__(encoder, decoder, latent_shape, likelihood, prior)
        latent = latent_shape[0]
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1) if quant else None
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if post_quant else None

    def moments(self, x: torch.Tensor) -> torch.Tensor:
        moments = super().moments(x)
        return moments if self.quant_conv is None else self.quant_conv(moments)

    def parameters_of(self, z: torch.Tensor):
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))


def autoencoder_kl(
    data_shape: Sequence[int],
    latent: int = 4,
    widths: Sequence[int] = (32, 64),
    layers: int = 1,
    groups: int = 8,
    activation: str = "silu",
    attention: bool = True,
    quant: bool = True,
    post_quant: bool = True,
    likelihood: str = "gaussian",
    likelihood_options: dict | None = None,
    **options,
) -> AutoencoderKL:
    """An AutoencoderKL.

    Args:
        data_shape: (channels, height, width), height and width multiples of 2^(len(widths) - 1).
        latent: channels of z.
        widths: channels at each resolution, multiples of groups (diffusers' block_out_channels).
        layers: Resnets of each of the encoder's stages (layers_per_block); the decoder has one more.
        groups: of the group norms (norm_num_groups).
        activation: by name (act_fn).
        attention: in the middle (mid_block_add_attention).
        quant, post_quant: a 1x1 convolution after the encoder, before the decoder.
        likelihood, likelihood_options, options: as for `parts.build`; by default a Gaussian of sigma 1, of which the
            mean is what diffusers calls the sample.

    Raises:
        ValueError: for a size or channels that do not divide.
    """
    channels, *size = data_shape
    factor = 2 ** (len(widths) - 1)
    if len(size) != 2 or any(s % factor for s in size):
        raise ValueError(
            f"data_shape must be (channels, height, width), multiples of {factor}, got {tuple(data_shape)}"
        )
    if any(width % groups for width in widths):
        raise ValueError(f"widths must be multiples of groups {groups}, got {tuple(widths)}")
    if likelihood == "gaussian" and likelihood_options is None:
        likelihood_options = {"logvar": 0.0}
    encoder = Encoder(channels, latent, widths, layers, groups, activation, attention)

    def decoder(shape):
        return Decoder(latent, shape[0], widths, layers, groups, activation, attention)

    def vae(*arguments):
        return AutoencoderKL(*arguments, quant=quant, post_quant=post_quant)

    latent_shape = latent, *[s // factor for s in size]
    likely = {"likelihood": likelihood, "likelihood_options": likelihood_options}
    return parts.build(vae, encoder, decoder, data_shape, latent_shape, **likely, **options)


def from_diffusers_config(config: dict, **options) -> AutoencoderKL:
    """The model that diffusers' `config.json` of an AutoencoderKL describes.

    Args:
        config: that file's content, or `model.config` of diffusers' own. What it leaves out has diffusers' default.
        options: likelihood, prior and theirs.

    Raises:
        ValueError: for blocks that are not of this kind, and for in_channels that are not out_channels.
    """
    from vaefast.models import create

    config = dict(config)
    for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if set(config.get(key, [kind])) != {kind}:
            raise ValueError(f"{key} must hold {kind!r} alone, got {config[key]}")
    channels, out = config.get("in_channels", 3), config.get("out_channels", 3)
    if channels != out:
        raise ValueError(f"out_channels must be in_channels {channels}, got {out}")
    size, activation = config.get("sample_size", 32), config.get("act_fn", "silu").lower()
    return create(
        "autoencoder_kl",
        data_shape=(channels, *(size if isinstance(size, (list, tuple)) else (size, size))),
        latent=config.get("latent_channels", 4),
        widths=tuple(config.get("block_out_channels", (64,))),
        layers=config.get("layers_per_block", 1),
        groups=config.get("norm_num_groups", 32),
        activation="silu" if activation == "swish" else activation,
        attention=config.get("mid_block_add_attention", True),
        quant=config.get("use_quant_conv", True),
        post_quant=config.get("use_post_quant_conv", True),
        **options,
    )
