"""From a checkpoint to what ships, and what can be done with that: convert, measure, caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from trainables.captioning import check, checkpoint
from trainables.captioning.compress.artefact import load_artefact, read_artefact, save_artefact
from trainables.captioning.compress.graph_figures import graph_figures, warning
from trainables.captioning.compress.measure import measure
from trainables.captioning.compress.model_card import DataFacts, Facts, model_card
from trainables.captioning.compress.onnx_graphs import DECODER_STEP, write_onnx
from trainables.captioning.compress.onnx_int8 import DECODER_STEP_INT8, ENCODER_INT8, write_int8
from trainables.captioning.data import cache
from trainables.captioning.data.cache import CaptionData
from trainables.captioning.settings import DataSettings, Settings
from trainables.captioning.shrinking import Shrinking
from trainables.trial import Metrics, SettingsError

CARD = "README.md"
#: Encodings of weights that int8 graphs round no further, or hardly (int4).
_WHOLE_STEPS = {"int8", "int8_per_tensor", "int4"}


def export(checkpoint_folder: Path, folder: Path) -> None:
    """Turn a checkpoint into what ships, compressed as its settings say, with a model card."""
    state = checkpoint.load_state(checkpoint_folder)
    captioner = checkpoint.load_captioner(checkpoint_folder)
    shrinking = Shrinking(
        state.settings.compression, captioner, max_epochs=state.epoch, strength=state.strength
    )
    small = shrinking.shipped(captioner, begun=state.strength is not None)
    facts = {
        "epoch": state.epoch,
        "metrics": state.quality,
        "cost": state.measured,
        "image_size": state.image_size,
        "max_tokens": state.max_caption_tokens,
        **state.facts,
    }
    tokenizer = checkpoint.load_tokenizer(checkpoint_folder)
    save_artefact(small, tokenizer, folder, max_tokens=state.max_caption_tokens, facts=facts)
    _write_card(folder, small.settings, facts)


def convert(folder: Path, data: Mapping[str, Any]) -> str:
    """Add ONNX graphs to what `export` wrote, in int8, too, where its weights are; and measure them.

    Args:
        folder: what `export` wrote.
        data: the experiment's `data` section; graphs caption its validation split.

    Returns:
        Lines for a person: which graphs there are, and their figures, or what they need.
    """
    artefact = read_artefact(folder)
    captioner = artefact.captioner
    line = write_onnx(captioner, folder, max_tokens=artefact.max_tokens)
    if not (folder / DECODER_STEP).exists():
        return line
    kinds = {encoding.kind for encoding in captioner.encodings.values()}
    if kinds & _WHOLE_STEPS:
        write_int8(folder, per_channel="int8_per_tensor" not in kinds)
        line += f", in int8 in {ENCODER_INT8} and {DECODER_STEP_INT8}"
    prepared, reason = _opened(data)
    figures = graph_figures(folder, prepared)
    _write_card(folder, captioner.settings, {**artefact.facts, "graphs": figures})
    told = [
        f"{each['way']}: {each['bytes'] / 1e6:.3g} MB, {each['ratio']:.2f} of PyTorch's time, CIDEr "
        + (f"not measured: {reason}" if each["cider"] is None else f"{each['cider']:.4g} (greedy)")
        for each in figures
    ]
    return "\n".join(filter(None, [line, *told, warning(figures)]))


def measure_exported(folder: Path) -> Metrics:
    """What a captioner costs that was exported into `folder`, on the machine that calls."""
    artefact = load_artefact(folder)
    captioner = artefact.captioner
    return {**measure(captioner, image_size=captioner.image_size, max_tokens=artefact.max_tokens)}  # type: ignore[dict-item]


def caption(folder: Path, images: Sequence[Path]) -> list[str]:
    """Captions of image files by what `export` wrote into `folder`.

    Raises:
        ValueError, OSError: an image that cannot be read, or no artefact.
    """
    return load_artefact(folder).caption(list(images))


def data_facts(data: CaptionData, settings: DataSettings) -> DataFacts:
    """What a card says of the data that a captioner was trained on."""
    return {
        "format": settings.format,
        "key": data.key,
        "images": {split: len(images) for split, images in data.splits.items()},
        "captions": {split: len(data.captions_of(split)) for split in data.splits},
        "vocabulary_size": data.tokenizer.vocabulary_size,
        "tokenizer": settings.tokenizer,
    }


def _opened(data: Mapping[str, Any]) -> tuple[CaptionData | None, str]:
    """Prepared data, or why there is none (any more)."""
    try:
        return cache.prepare(check.read_data_settings(data)), ""
    except SettingsError as error:
        return None, str(error)


def _write_card(folder: Path, settings: Settings, facts: Mapping[str, Any]) -> None:
    (folder / CARD).write_text(model_card(settings, cast(Facts, facts)), encoding="utf-8")
