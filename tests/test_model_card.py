import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from trainables.captioning.compress.artefact import load_artefact, save_artefact
from trainables.captioning.compress.graph_figures import GRAPHS, INT8_GRAPHS, TORCH
from trainables.captioning.compress.model_card import _METHODS, _WITH_RATIO, model_card
from trainables.captioning.compress.onnx_graphs import write_onnx
from trainables.captioning.compress.onnx_int8 import write_int8
from trainables.captioning.data.tokenizer import CaptionTokenizer
from trainables.captioning.model.captioner import Captioner
from trainables.captioning.settings import METHODS, Compression, Settings

FACTS = {
    "trial": "00042",
    "epoch": 7,
    "metrics": {"cider": 0.31187, "val_loss": 3.25},
    "cost": {"params": 4_443_639, "size_mb": 16.67, "latency_ms": 58.472},
    "hardware": "Xeon 8999",
    "torch": "2.13.0",
    "data": {
        "format": "flickr8k",
        "key": "abc123",
        "images": {"train": 12_753, "val": 113},
        "captions": {"train": 63_765},
        "vocabulary_size": 1234,
        "tokenizer": "word",
    },
    "image_size": 224,
    "max_tokens": 30,
}


def figures(*rows):
    """Of ways to run a captioner: name, bytes, CIDEr."""
    return [
        {"way": way, "bytes": size, "cider": cider, "images": 113, "ratio": 0.5, "ratio_low": 0.45,
         "ratio_high": 0.55}
        for way, size, cider in rows
    ]  # fmt: skip


def section(card, heading):
    return re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", card, re.M | re.S)[1]


def blocks(card):
    return re.findall(r"^```python\n(.*?)^```$", card, re.M | re.S)


def shipped(method, ratio=0.75, **settings):
    """Settings with any method, also one that these settings cannot name yet."""
    compression = Compression.model_construct(**dict(Compression()) | {"method": method, "ratio": ratio})
    return Settings(**settings).model_copy(update={"compression": compression})


def test_what_is_known_is_told_where_it_belongs():
    card = model_card(Settings(), FACTS)
    head, rest = re.fullmatch(r"---\n(.*?)\n---\n(.*)", card, re.S).groups()
    assert yaml.safe_load(head)["pipeline_tag"] == "image-to-text"
    assert "# Captions for images" in rest and "Trial 00042. Epochs: 7." in rest
    data = section(card, "Training data")
    assert "| train | 12,753 | 63,765 |" in data and "| val | 113 |  |" in data
    assert all(told in data for told in ("`flickr8k`", "1,234 tokens", "`word`", "`abc123`"))
    figures = section(card, "Figures")
    assert "| `cider` | 0.3119 | CIDEr-D" in figures and "| `params` | 4,443,639 |" in figures
    assert "validation split" in figures and "one CPU thread (Xeon 8999; torch 2.13.0)" in figures
    assert "224 x 224 pixels" in card and "at most 30 tokens" in card
    assert "12,753 images" in section(card, "Limits")


def test_what_is_not_known_is_not_made_up():
    card = model_card(Settings(), {})
    assert section(card, "Training data").strip() == section(card, "Figures").strip() == "Not recorded."
    assert "None" not in card and "onnx" not in card
    card = model_card(Settings(), {"cost": {"latency_ms": 1.0}})
    assert "hardware not recorded; torch version not recorded" in card
    assert "validation" not in section(card, "Figures")


def test_every_setting_stands_in_its_table():
    settings = Settings(decoder="transformer", learning_rate=3e-4)
    rows = dict(re.findall(r"^\| `(\S+)` \| `(.*)` \|$", section(model_card(settings, {}), "Settings"), re.M))
    assert rows["decoder"] == "transformer" and rows["learning_rate"] == "0.0003"
    assert rows["compression.method"] == "none" and rows["embedding_width"] == "null"
    assert set(rows) > set(Settings.model_fields) - {"compression"}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_explained(method):
    compression = Compression(method=method, parent="checkpoints/00001/0009")
    assert _METHODS[method] in model_card(Settings(compression=compression), {})
    assert set(_METHODS) == set(METHODS) >= set(_WITH_RATIO)


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"decoder": "gru", "beam_width": 1}, "greedy search"),
        ({"decoder": "transformer", "decoder_heads": 8, "decoder_layers": 3}, "256 wide, 3 layers, 8 heads."),
        (
            {"decoder": "gru_attention", "tie_embeddings": True},
            "1 layer; the word vectors are the output layer.",
        ),
        ({"decoder_layers": 2, "share_layers": True}, "2 layers; the layers share their weights."),
        ({"encoder": "efficientnet_lite0", "encoder_trainable": False}, "pretrained on ImageNet and frozen."),
        ({"encoder": "cnn", "encoder_width": 24}, "24 channels in its first stage."),
    ],
)
def test_the_architecture_in_words(settings, told):
    assert told in section(model_card(Settings(**settings), {}), "What it is")


@pytest.mark.parametrize(
    "method, told",
    [
        ("none", "Compression: none."),
        ("int8", r"Compression: `int8` \([^)]+\)."),
        (
            "prune+int4",
            r"Compression: `prune` \([^)]+\) \+ `int4` \([^)]+\), share of the bytes removed: 0.75",
        ),
    ],
)
def test_the_compression_in_words(method, told):
    assert re.search(told, section(model_card(shipped(method), {}), "What it is"))


def test_graphs_are_told_with_what_they_cost():
    rows = (TORCH, 1_000, 0.4), (GRAPHS, 4_000, 0.4), (INT8_GRAPHS, 1_100, 0.39)
    card = model_card(Settings(), {"graphs": figures(*rows)})
    assert "| ONNX Runtime, int8 | 1,100 | 0.39 | 0.50 (0.45 to 0.55) |" in section(card, "Figures")
    assert "113 images of the validation split" in card and "lose" not in card
    assert "`decoder_step.int8.onnx`" in section(card, "How to use it")
    without = model_card(Settings(), {"graphs": figures(*rows[:2])})
    assert "encoder.onnx" in without and "int8.onnx" not in without


def test_int8_graphs_that_caption_worse_are_called_so():
    card = model_card(
        Settings(), {"graphs": figures((TORCH, 1, 0.4), (GRAPHS, 1, 0.4), (INT8_GRAPHS, 1, 0.3))}
    )
    assert "lose 25% of the CIDEr of the float32 ones (0.4 to 0.3), more than 5%" in section(card, "Figures")


def test_graphs_without_data_have_no_cider():
    card = model_card(Settings(), {"graphs": figures((TORCH, 1, None), (INT8_GRAPHS, 1, None))})
    told = section(card, "Figures")
    assert "| not measured |" in told and "None" not in told and "validation split" not in told


def test_licences_name_the_pretrained_weights_only_where_they_are_in_it():
    assert "State it here" in model_card(Settings(), {}) and "Apache" not in model_card(Settings(), {})
    licences = section(model_card(Settings(encoder="efficientnet_lite0"), {}), "Licences")
    assert all(told in licences for told in ("State it here", "Apache-2.0", "ImageNet"))


@pytest.mark.slow
@pytest.mark.timeout(90)  # writes ONNX graphs
def test_its_python_lines_run_in_the_folder(tmp_path, monkeypatch, capsys):
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    torch.manual_seed(0)
    tokenizer = CaptionTokenizer.train(
        ["a red bird sings", "two blue cars on a road"] * 2, kind="word", vocabulary_size=30, min_frequency=1
    )
    settings = Settings(encoder_width=8, decoder_width=32, decoder="gru", beam_width=1)
    captioner = Captioner(settings, tokenizer.vocabulary_size, 32).eval()
    with torch.no_grad():
        captioner.decoder.gru.hidden[0].weight *= 8  # as decided as a trained one
    save_artefact(captioner, tokenizer, tmp_path, max_tokens=7)
    write_onnx(captioner, tmp_path, max_tokens=7)
    pixels = np.random.default_rng(0).integers(256, size=(40, 48, 4), dtype=np.uint8)
    pixels[:, 8:, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", "PNG")  # what is transparent is white
    expected = load_artefact(tmp_path).caption([tmp_path / "photo.jpg"])
    assert len(set(expected[0].split())) > 1

    monkeypatch.chdir(tmp_path)
    write_int8(tmp_path)
    card = model_card(settings, {"graphs": figures((TORCH, 1, 0.3), (GRAPHS, 1, 0.3), (INT8_GRAPHS, 1, 0.3))})
    in_int8 = [block.replace(".onnx", ".int8.onnx") for block in blocks(card)[1:]]
    for block in blocks(card) + in_int8:
        exec(block, {})
    assert capsys.readouterr().out.splitlines() == expected * 3
    assert len(blocks(model_card(settings, {}))) == 1
