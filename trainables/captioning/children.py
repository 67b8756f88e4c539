"""Children of a trained captioner: what can be made of it, and what they take over from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainables.captioning import check, checkpoint
from trainables.captioning.compress import METHODS, find_strength
from trainables.captioning.data.cache import CaptionData
from trainables.captioning.settings import Compression, Settings
from trainables.patience import StorageFailed
from trainables.trial import SettingsError

OTHER_CAPTIONS = (
    "the captions have changed since this checkpoint was trained, and its word numbers mean other words: "
    "put the data back, or give the experiment another name"
)


def variants(
    checkpoint_folder: Path, methods: Sequence[str], ratios: Sequence[float]
) -> tuple[list[dict[str, Any]], list[str]]:
    """What can be made of a trained captioner by every one of `methods` at every one of `ratios`.

    Args:
        checkpoint_folder: of a captioner that is whole.
        methods: such as `int8` or `prune+int4`, or `none`.
        ratios: shares of its bytes to remove; number formats and `share` alone remove what they remove.

    Returns:
        A child's settings for each, and for each that is out of reach a line that says what is not.

    Raises:
        SettingsError: an unknown method, or a captioner that is compressed already.
    """
    inherited(checkpoint_folder, Compression())
    captioner = checkpoint.load_captioner(checkpoint_folder)
    found: list[dict[str, Any]] = []
    refused: list[str] = []
    for method in methods:
        asked = {"compression.parent": str(checkpoint_folder), "compression.method": method}
        names = check.read_settings(asked).compression.methods
        tunable = any(METHODS[name].tunable for name in names)
        for ratio in ratios if tunable else [None]:
            try:
                find_strength(captioner, names, ratio)
            except SettingsError as error:
                refused.append(f"{method}: {error.message}")
                continue
            found.append(asked if ratio is None else asked | {"compression.ratio": ratio})
    return found, refused


def starts_untrained(method: str) -> bool:
    """Whether what `method` makes of a captioner has yet to be trained: a student's weights are new."""
    return "distil" in method.split("+")


def inherited(parent: Path, compression: Compression, data: CaptionData | None = None) -> Settings:
    """A child's settings: its parent's, but for the compression.

    They name the parent as `checkpoints/TRIAL/EPOCH`: where that lay on the machine that trained is nobody's
    business.

    Raises:
        SettingsError: no checkpoint, or one that is compressed.
        StorageFailed: it is of other data than `data`: no fault of the child's, but the run cannot go on.
    """
    where = ("model", "compression", "parent")
    try:
        state = checkpoint.load_state(parent)
    except ValueError as error:
        raise SettingsError(where, str(error)) from error
    if state.settings.compression.methods:
        method = state.settings.compression.method
        raise SettingsError(where, f"{parent} is compressed ({method}); name one that is whole")
    told = state.vocabulary_size, state.image_size
    if data is not None and told != (data.tokenizer.vocabulary_size, data.images.shape[1]):
        reason = f"{parent} was trained on other data: vocabulary or image size differ"
        raise StorageFailed(reason, full=False)
    if data is not None and checkpoint.load_tokenizer(parent) != data.tokenizer:
        raise StorageFailed(f"{parent}: {OTHER_CAPTIONS}", full=False)
    named = Path(*parent.parts[-3:])
    if compression.parent is not None:
        compression = compression.model_copy(update={"parent": named})
    return state.settings.model_copy(update={"compression": compression})
