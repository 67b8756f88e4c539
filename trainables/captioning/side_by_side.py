"""What one captioner says about the validation images, beside what another one says, as tables.

Puts artefacts, prepared data and `recall.py` together. Who the two are is for `tuning` to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainables.captioning.compress.artefact import load_artefact
from trainables.captioning.data import cache
from trainables.captioning.recall import WordRecall, lost_words, word_recall
from trainables.captioning.settings import DataSettings
from trainables.captioning.word_kinds import KINDS
from trainables.trial import Tables


def side_by_side(a: Path, b: Path, data: DataSettings, *, progress: bool = False) -> Tables:
    """Let two captioners caption the validation images, each with its own beam width, on the CPU.

    Args:
        a, b: what `save_artefact` wrote.
        data: the experiment's `data` section; prepared first where it is not in the cache any more.
        progress: show a bar while that is done.

    Returns:
        See `tables`.

    Raises:
        FileNotFoundError, ValueError: no artefact, or a damaged one.
        SettingsError: data that cannot be used, or is not there any more.
    """
    artefacts = [load_artefact(folder) for folder in (a, b)]
    prepared = cache.prepare(data, progress=progress)
    images = prepared.splits["val"].tolist()
    pixels = [prepared.images[image] for image in images]
    by_a, by_b = (artefact.caption(pixels) for artefact in artefacts)
    names = [prepared.names[image] for image in images]
    return tables(names, [prepared.captions[image] for image in images], by_a, by_b)


def tables(
    names: Sequence[str], references: Sequence[Sequence[str]], a: Sequence[str], b: Sequence[str]
) -> Tables:
    """What B stops saying.

    Args:
        names: of the images.
        references: of each image, one or more captions.
        a, b: one caption per image.

    Returns:
        `words`: a row per word that references agree on, with the `images` they do in, the share of them in
        which A and B say it (`recall_a`, `recall_b`), its `fall`, and `discounted_fall`, by which the rows
        are sorted: few images tell little. `kinds`: the same, summed over the words of each kind. `captions`:
        a row per image with the words `lost`; those that lost most come first.
    """
    words = word_recall(references, a, b)
    lost = lost_words(references, a, b)
    rows = sorted(zip(names, lost, a, b, references, strict=True), key=lambda row: -len(row[1]))
    return {
        "words": [_word_row(word) for word in words],
        "kinds": _kind_rows(words),
        "captions": [
            {"image": name, "lost": " ".join(gone), "a": one, "b": other, "reference": group[0]}
            for name, gone, one, other, group in rows
        ],
    }


def _word_row(word: WordRecall) -> dict[str, Any]:
    return {
        "word": word.word,
        "kind": word.kind,
        "images": word.images,
        "recall_a": word.recall_a,
        "recall_b": word.recall_b,
        "fall": word.fall,
        "discounted_fall": word.discounted_fall,
    }


def _kind_rows(words: Sequence[WordRecall]) -> list[dict[str, Any]]:
    rows = []
    for kind in KINDS:
        members = [word for word in words if word.kind == kind]
        images = sum(word.images for word in members)
        by_a, by_b = (sum(getattr(word, said) for word in members) for said in ("said_by_a", "said_by_b"))
        if members:
            shares = {"recall_a": by_a / images, "recall_b": by_b / images, "fall": (by_a - by_b) / images}
            rows.append({"kind": kind, "words": len(members), "images": images, **shares})
    return rows
