"""From a checkpoint to what ships, and what can be done with that: convert, measure, caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from trainables.captioning import checkpoint
from trainables.captioning.compress.artefact import load_artefact, read_artefact, save_artefact
from trainables.captioning.compress.measure import measure
from trainables.captioning.compress.model_card import DataFacts, Facts, model_card
from trainables.captioning.compress.onnx_graphs import DECODER_STEP, write_onnx
from trainables.captioning.data.cache import CaptionData
from trainables.captioning.settings import Settings
from trainables.captioning.shrinking import Shrinking
from trainables.trial import Metrics

CARD = "README.md"


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


def convert(folder: Path) -> str:
    """Add ONNX graphs to what `export` wrote; a line for a person says which, or what they need."""
    artefact = read_artefact(folder)
    line = write_onnx(artefact.captioner, folder, max_tokens=artefact.max_tokens)
    _write_card(folder, artefact.captioner.settings, artefact.facts)
    return line


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


def data_facts(data: CaptionData, layout: str) -> DataFacts:
    """What a card says of the data that a captioner was trained on."""
    return {
        "format": layout,
        "key": data.key,
        "images": {split: len(images) for split, images in data.splits.items()},
        "captions": {split: len(data.captions_of(split)) for split in data.splits},
        "vocabulary_size": data.tokenizer.vocabulary_size,
    }


def _write_card(folder: Path, settings: Settings, facts: Mapping[str, Any]) -> None:
    there = (folder / DECODER_STEP).exists()
    (folder / CARD).write_text(model_card(settings, cast(Facts, {**facts, "onnx": there})), encoding="utf-8")
