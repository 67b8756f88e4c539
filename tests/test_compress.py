import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, load_file, save
from torch import nn

from trainables.captioning.checkpoint import TrialState, load_state, load_weights, save_checkpoint
from trainables.captioning.compress import as_shipped
from trainables.captioning.compress.artefact import load_artefact, save_artefact, size_bytes
from trainables.captioning.compress.int8 import (
    Int8Embedding,
    Int8Linear,
    Int8TiedEmbedding,
    StoredInt8Linear,
    quantise,
)
from trainables.captioning.compress.low_rank import LowRankLinear, choose_ranks, factorise, is_factorised
from trainables.captioning.compress.measure import count_macs, count_parameters
from trainables.captioning.data.tokenizer import CaptionTokenizer
from trainables.captioning.model.captioner import Captioner
from trainables.captioning.model.words import TiedEmbedding
from trainables.captioning.settings import Compression, Settings
from trainables.trial import SettingsError

VOCABULARY, SIZE = 30, 16
every_decoder = pytest.mark.parametrize("kind", ["gru", "gru_attention", "transformer"])
SHARED = {"tie_embeddings": True, "share_layers": True, "embedding_width": 40}
sharing = pytest.mark.parametrize("shared", [{}, SHARED], ids=["whole", "shared"])


def make(kind: str = "gru_attention", seed: int = 0, vocabulary: int = VOCABULARY, **settings) -> Captioner:
    torch.manual_seed(seed)
    settings = {"decoder_width": 48, "encoder_width": 4, "decoder_layers": 2} | settings
    return Captioner(Settings(decoder=kind, **settings), vocabulary, SIZE).eval()


def batch(rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (rows, SIZE, SIZE, 3), generator=generator).to(torch.uint8)
    return images, torch.randint(4, VOCABULARY, (rows, 6), generator=generator)


def bytes_of(captioner: Captioner) -> int:
    return sum(t.numel() * t.element_size() for t in captioner.decoder.state_dict().values())


def by_steps(captioner: Captioner, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    state, logits = captioner.decoder.start(captioner.encode(images)), []
    for t in range(tokens.shape[1]):
        step, state = captioner.decoder.step(tokens[:, t], state)
        logits.append(step)
    return torch.stack(logits, 1)


# int8


def rounded(matrix: torch.Tensor) -> torch.Tensor:
    """Each row to the nearest of 255 even steps, in float64."""
    step = matrix.double().abs().amax(-1, keepdim=True) / 127
    return torch.round(matrix.double() / step) * step


def test_int8_linear_is_a_product_of_rounded_rows():
    torch.manual_seed(0)
    linear, x = nn.Linear(37, 21), 3 * torch.randn(2, 5, 37)
    expected = rounded(x) @ rounded(linear.weight).T + linear.bias
    torch.testing.assert_close(Int8Linear(linear)(x).double(), expected, rtol=1e-4, atol=1e-4)
    expected = x.double() @ rounded(linear.weight).T + linear.bias
    torch.testing.assert_close(StoredInt8Linear(linear)(x).double(), expected, rtol=1e-4, atol=1e-4)


def test_int8_linear_without_bias_and_with_a_row_of_zeros():
    linear = nn.Linear(8, 3, bias=False)
    out = Int8Linear(linear)(torch.stack([torch.zeros(8), torch.ones(8)]))
    assert out[0].abs().max() == 0
    torch.testing.assert_close(out[1], linear.weight.sum(1), rtol=0.05, atol=0.05)


def test_a_stored_int8_layer_follows_its_buffers():
    torch.manual_seed(0)
    one, other, x = StoredInt8Linear(nn.Linear(9, 4)), StoredInt8Linear(nn.Linear(9, 4)), torch.randn(2, 9)
    assert not torch.equal(one(x), other(x))
    one.load_state_dict(other.state_dict())
    torch.testing.assert_close(one(x), other(x))


def test_int8_embedding_gives_rounded_rows():
    embedding = nn.Embedding(11, 6)
    tokens = torch.tensor([[1, 10], [4, 4]])
    expected = rounded(embedding.weight)[tokens]
    torch.testing.assert_close(Int8Embedding(embedding)(tokens).double(), expected)


@pytest.mark.parametrize("threshold", [1024, 2**19])
def test_a_tied_int8_matrix_is_looked_up_and_multiplied_in_the_same_rounding(threshold, monkeypatch):
    monkeypatch.setattr("trainables.captioning.compress.int8._FEWEST_FOR_ARITHMETIC", threshold)
    torch.manual_seed(0)
    embedding, x = TiedEmbedding(40, 32), torch.randn(2, 5, 32)
    with torch.no_grad():
        embedding.bias.normal_()
    small, matrix = Int8TiedEmbedding(embedding), rounded(embedding.weight)
    tokens = torch.tensor([[3, 39], [0, 0]])
    torch.testing.assert_close(small(tokens).double(), matrix[tokens] * 32**0.5, rtol=1e-5, atol=1e-6)
    activations = rounded(x) if threshold == 1024 else x.double()
    expected = activations @ matrix.T + embedding.bias
    torch.testing.assert_close(small.logits(x).double(), expected, rtol=1e-4, atol=1e-4)


@every_decoder
@sharing
def test_quantising_makes_the_decoder_nearly_four_times_smaller_and_hardly_changes_it(kind, shared):
    captioner, (images, tokens) = make(kind, decoder_width=128, **shared), batch()
    before = captioner(images, tokens)
    small = quantise(captioner)
    # Fewer matrices beside as many biases: a little less of a shared decoder can shrink.
    assert bytes_of(small) < bytes_of(captioner) / (3.3 if shared else 3.5)
    assert (small(images, tokens).softmax(-1) - before.softmax(-1)).abs().max() < 2e-3
    torch.testing.assert_close(captioner(images, tokens), before)  # the original is as it was


@every_decoder
@pytest.mark.parametrize("threshold", [1024, 2**19])
@sharing
def test_int8_generation_computes_what_int8_teacher_forcing_does(kind, shared, threshold, monkeypatch):
    """With a low threshold all layers are multiplied in int8, with the usual one these small ones are not."""
    monkeypatch.setattr("trainables.captioning.compress.int8._FEWEST_FOR_ARITHMETIC", threshold)
    small, (images, tokens) = quantise(make(kind, **shared)), batch()
    assert any(isinstance(m, Int8Linear) for m in small.modules()) == (threshold == 1024)
    # A last bit that differs may round an activation the other way.
    torch.testing.assert_close(by_steps(small, images, tokens), small(images, tokens), rtol=0, atol=2e-3)


@every_decoder
def test_an_int8_caption_does_not_depend_on_batch_mates(kind, monkeypatch):
    monkeypatch.setattr("trainables.captioning.compress.int8._FEWEST_FOR_ARITHMETIC", 1024)
    small, (images, tokens) = quantise(make(kind)), batch()
    images[0] = 255  # an outlier must not coarsen the others
    alone = torch.cat([small(images[i : i + 1], tokens[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(small(images, tokens), alone, rtol=0, atol=2e-3)


# low_rank


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.75, 0.9])
@every_decoder
@sharing
def test_the_ratio_is_the_share_of_the_bytes_that_goes(kind, shared, ratio):
    captioner = make(kind, **shared)
    small = factorise(captioner, ratio)
    replaced = {n for n, m in small.decoder.named_modules() if isinstance(m, LowRankLinear)}
    before = sum(captioner.decoder.get_submodule(name).weight.numel() for name in replaced)
    after = sum(
        small.decoder.get_submodule(name).left.numel() + small.decoder.get_submodule(name).right.numel()
        for name in replaced
    )
    assert 1 - after / before == pytest.approx(ratio, abs=0.05)
    assert bytes_of(captioner) - bytes_of(small) == 4 * (before - after)


def test_a_matrix_that_cannot_shrink_stays():
    assert choose_ranks({"wide": (64, 64), "row": (1, 64), "two": (2, 2)}, 0.5) == {"wide": 16}


def test_a_ratio_out_of_reach_is_refused_with_the_reachable_one():
    with pytest.raises(SettingsError, match=r"0\.99 .*rank 1 everywhere removes 0\.750.*at most that"):
        choose_ranks({"a": (8, 8), "b": (8, 8)}, 0.99)


def test_the_factors_are_the_best_approximation():
    torch.manual_seed(0)
    linear = nn.Linear(20, 30).double()
    values = torch.linalg.svdvals(linear.weight)
    error = torch.linalg.matrix_norm(LowRankLinear(linear, 7).weight - linear.weight)
    torch.testing.assert_close(error, values[7:].square().sum().sqrt())  # Eckart & Young
    x = torch.randn(4, 20).double()
    torch.testing.assert_close(LowRankLinear(linear, 20)(x), linear(x))


@every_decoder
@sharing
def test_a_factorised_captioner_trains_all_its_factors(kind, shared):
    captioner, (images, tokens) = make(kind, **shared), batch()
    before = captioner(images, tokens)
    small = factorise(captioner.train(), 0.5)
    assert small.training
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    small(images, tokens).square().mean().backward()
    assert [name for name, p in small.named_parameters() if p.grad is None or not p.grad.any()] == []
    optimizer.step()
    torch.testing.assert_close(captioner.eval()(images, tokens), before)  # the original is as it was


@every_decoder
@sharing
def test_factorised_generation_computes_what_teacher_forcing_does(kind, shared):
    small, (images, tokens) = factorise(make(kind, **shared), 0.5), batch()
    torch.testing.assert_close(by_steps(small, images, tokens), small(images, tokens), rtol=1e-4, atol=1e-5)


def test_a_checkpoint_fits_any_factorisation_with_the_same_settings():
    one, other = factorise(make(seed=0), 0.6), factorise(make(seed=1), 0.6)
    other.load_state_dict(one.state_dict())
    images, tokens = batch()
    torch.testing.assert_close(other(images, tokens), one(images, tokens))


def test_what_ships():
    captioner = make().train()
    plain = as_shipped(captioner, Compression())
    assert not plain.training and plain is not captioner and captioner.training
    factorised = as_shipped(captioner, Compression(method="low_rank", ratio=0.5))
    assert is_factorised(factorised) and not factorised.training and not is_factorised(captioner)
    trained = factorise(captioner, 0.5)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter += 0.1
    shipped = as_shipped(trained, Compression(method="low_rank", ratio=0.5))
    assert all(torch.equal(a, b) for a, b in zip(shipped.parameters(), trained.parameters(), strict=True))
    assert any(b.dtype == torch.int8 for b in as_shipped(captioner, Compression(method="int8")).buffers())


# artefact


@pytest.fixture(scope="module")
def tokenizer():
    captions = ["a b c d e f g h i j k l m n o p q r s t u v w x y z"] * 3
    return CaptionTokenizer.train(captions, kind="word", vocabulary_size=100, min_frequency=1)


def shouting(kind: str, tokenizer: CaptionTokenizer, **settings) -> Captioner:
    """A captioner far from uniform, so that its captions tell images apart."""
    captioner = make(kind, vocabulary=tokenizer.vocabulary_size, **settings)
    with torch.no_grad():
        for parameter in captioner.decoder.parameters():
            parameter *= 3
    return captioner


@every_decoder
@pytest.mark.parametrize("method", ["none", "int8", "low_rank"])
@sharing
def test_a_loaded_artefact_writes_the_same_captions(kind, shared, method, tokenizer, tmp_path):
    captioner = as_shipped(shouting(kind, tokenizer, **shared), Compression(method=method, ratio=0.5))
    save_artefact(captioner, tokenizer, tmp_path / "best", max_tokens=7, facts={"trial": "t1"})
    loaded = load_artefact(tmp_path / "best")
    images, tokens = batch(5)
    assert torch.equal(loaded.captioner(images, tokens), captioner(images, tokens))
    ids = captioner.generate(images, max_tokens=7, beam_width=3, length_penalty=0.7)
    captions = loaded.caption(list(images.numpy()), batch_size=2)
    assert captions == tokenizer.decode(ids)
    assert any(captions)
    assert loaded.facts == {"trial": "t1"}
    assert not loaded.captioner.training
    assert size_bytes(captioner) == (tmp_path / "best" / "weights.safetensors").stat().st_size


@every_decoder
@pytest.mark.parametrize("method", ["none", "int8", "low_rank"])
def test_shared_weights_are_counted_and_stored_once(kind, method):
    compression = Compression(method=method, ratio=0.5)
    settings = {"vocabulary": 200, "decoder_layers": 3}
    whole = as_shipped(make(kind, **settings), compression)
    shared = as_shipped(make(kind, **settings, tie_embeddings=True, share_layers=True), compression)
    gru = 2 * (48 * 144 + 144)
    layer = {"transformer": 8 * (48 * 48 + 48) + 2 * 4 * 48 * 48 + 5 * 48 + 6 * 48}.get(kind, gru)
    if method != "low_rank":  # there the output layer has factors, unless it is tied
        assert count_parameters(whole) - count_parameters(shared) == 2 * layer + 200 * 48
    assert size_bytes(whole) - size_bytes(shared) > (4 if method == "none" else 1) * 2 * layer
    if method != "low_rank":  # an image is turned into keys once for all layers; nothing else is saved
        saved = (count_macs(m, image_size=SIZE, max_tokens=5) for m in (whole, shared))
        assert next(saved) - next(saved) == (2 * 2 * 64 * 48 * 48 if kind == "transformer" else 0)
    assert sum(200 in t.shape and t.ndim == 2 for t in shared.state_dict().values()) == 1
    assert load(save(shared.state_dict())).keys() == shared.state_dict().keys()  # it refuses aliases


@every_decoder
def test_a_checkpoint_of_shared_weights_comes_back(kind, tokenizer, tmp_path):
    one, other = (make(kind, seed, tokenizer.vocabulary_size, **SHARED) for seed in (0, 1))
    state = TrialState(
        settings=one.settings, epoch=1, image_size=SIZE, vocabulary_size=VOCABULARY, max_caption_tokens=7
    )
    save_checkpoint(tmp_path, state=state, captioner=one, tokenizer=tokenizer, training={})
    assert load_state(tmp_path).settings == one.settings
    images, tokens = batch()
    assert not torch.equal(other(images, tokens), one(images, tokens))
    load_weights(tmp_path, other)
    assert torch.equal(other(images, tokens), one(images, tokens))


def test_int8_weights_are_int8_in_the_file(tokenizer, tmp_path):
    save_artefact(quantise(make(vocabulary=tokenizer.vocabulary_size)), tokenizer, tmp_path, max_tokens=7)
    tensors = load_file(tmp_path / "weights.safetensors")
    assert tensors["decoder.gru.hidden.0.quantised"].dtype == torch.int8
    assert "decoder.gru.hidden.0.weight" not in tensors


def test_images_come_as_paths_pillow_images_or_arrays(tokenizer, tmp_path):
    save_artefact(shouting("gru", tokenizer), tokenizer, tmp_path, max_tokens=7)
    artefact = load_artefact(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "image.png")
    ways = [tmp_path / "image.png", str(tmp_path / "image.png"), image, pixels]
    assert len(set(artefact.caption(ways, beam_width=1))) == 1
    assert artefact.caption([]) == []


def test_a_pretrained_encoder_ships_with_its_weights(tokenizer, tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    torch.manual_seed(0)
    settings = Settings(
        encoder="efficientnet_lite0", encoder_trainable=False, decoder="gru", decoder_width=16
    )
    captioner = Captioner(settings, tokenizer.vocabulary_size, 64).eval()
    save_artefact(captioner, tokenizer, tmp_path, max_tokens=5)
    loaded = load_artefact(tmp_path).captioner
    assert loaded.encoder.fingerprint == captioner.encoder.fingerprint
    assert (tmp_path / "weights.safetensors").stat().st_size > 13e6


def test_files_that_do_not_belong_together_are_refused(tokenizer, tmp_path):
    save_artefact(make(vocabulary=tokenizer.vocabulary_size), tokenizer, tmp_path, max_tokens=7)
    config = json.loads((tmp_path / "config.json").read_text())
    config["settings"]["decoder_width"] = 32
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"weights\.safetensors does not fit .*config\.json"):
        load_artefact(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_an_artefact_needs_no_ray():
    code = "import sys, trainables.captioning.compress.artefact; print({'ray', 'optuna'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
