"""What ships: a folder with the weights, the tokenizer and the settings, and a captioner made of it again.

Needs torch, tokenizers, Pillow and this package; no Ray, no experiment. Layout:

* `weights.safetensors`: every tensor in the type it runs in; int8 weights take one byte each.
* `config.json`: settings, vocabulary size, image size, longest caption, and facts for the reader.
* `tokenizer.json`
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor

from trainables.captioning.compress.int8 import quantise
from trainables.captioning.compress.low_rank import factorise_to
from trainables.captioning.data.images import FileSource, square
from trainables.captioning.data.tokenizer import CaptionTokenizer
from trainables.captioning.model.captioner import Captioner
from trainables.captioning.settings import Settings

WEIGHTS, CONFIG, TOKENIZER = "weights.safetensors", "config.json", "tokenizer.json"


def size_bytes(captioner: Captioner) -> int:
    """Bytes of the weights file that `save_artefact` would write, without writing it."""
    return len(save(_tensors(captioner)))


def save_artefact(
    captioner: Captioner,
    tokenizer: CaptionTokenizer,
    folder: Path,
    *,
    max_tokens: int,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Writes `captioner`, compressed or not, into `folder`, which is made where it is missing.

    Args:
        captioner: as shipped.
        tokenizer: that it was trained with.
        folder: existing files of the artefact's names in it are overwritten.
        max_tokens: longest caption, the end token included.
        facts: for the reader of `config.json` (trial, metrics, data set); anything JSON can hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(save(_tensors(captioner)))
    tokenizer.save(folder / TOKENIZER)
    config = {
        "settings": captioner.settings.model_dump(mode="json"),
        "vocabulary_size": captioner.vocabulary_size,
        "image_size": captioner.image_size,
        "max_tokens": max_tokens,
        "facts": dict(facts or {}),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


class Artefact:
    """A captioner that was loaded from its folder.

    Args:
        captioner: in evaluation mode.
        tokenizer: that it was trained with.
        max_tokens: longest caption, the end token included.
        facts: what was said about it when it was saved.
    """

    def __init__(
        self, captioner: Captioner, tokenizer: CaptionTokenizer, *, max_tokens: int, facts: Mapping[str, Any]
    ):
        self.captioner = captioner
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.facts = facts

    def caption(
        self,
        images: Sequence[Path | str | Image.Image | NDArray[np.uint8]],
        *,
        beam_width: int | None = None,
        batch_size: int = 32,
    ) -> list[str]:
        """A caption for each image.

        Args:
            images: paths of image files, Pillow images, or uint8 arrays [height, width, 3]; of any size.
            beam_width: default: that of the settings.
            batch_size: images that are captioned together.

        Raises:
            FileNotFoundError, BadImage: a path that is not there, or not a readable image.
        """
        settings = self.captioner.settings
        captions: list[str] = []
        for start in range(0, len(images), batch_size):
            pixels = np.stack([self._pixels(image) for image in images[start : start + batch_size]])
            ids = self.captioner.generate(
                torch.from_numpy(pixels),
                max_tokens=self.max_tokens,
                beam_width=beam_width or settings.beam_width,
                length_penalty=settings.length_penalty,
            )
            captions += self.tokenizer.decode(ids)
        return captions

    def _pixels(self, image: Path | str | Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Any image as the model wants it: uint8 [S, S, 3]."""
        size = self.captioner.image_size
        if isinstance(image, str | Path):
            return FileSource.of(Path(image)).pixels(size)
        if isinstance(image, np.ndarray):
            if image.shape == (size, size, 3) and image.dtype == np.uint8:
                return image  # resized already, for instance by the cache
            image = Image.fromarray(image)
        return square(image, size)


def load_artefact(folder: Path) -> Artefact:
    """The captioner that `save_artefact` wrote into `folder`, on the CPU; writes the same captions.

    Raises:
        FileNotFoundError: a file of the artefact is missing.
        ValueError: the files do not belong together, or a newer version wrote them.
    """
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    tensors = load_file(folder / WEIGHTS)
    settings = Settings.model_validate(config["settings"])
    with torch.device("meta"):  # shapes only: no initialisation, no pretrained weights, no SVD
        captioner = Captioner(
            settings, config["vocabulary_size"], config["image_size"], load_weights=False
        ).eval()
        captioner = _compressed_like(captioner, tensors)
    try:
        captioner.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{folder / WEIGHTS} does not fit {folder / CONFIG}: {error}") from error
    tokenizer = CaptionTokenizer.load(folder / TOKENIZER)
    return Artefact(
        captioner.requires_grad_(False), tokenizer, max_tokens=config["max_tokens"], facts=config["facts"]
    )


def _tensors(captioner: Captioner) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in captioner.state_dict().items()}


def _compressed_like(captioner: Captioner, tensors: Mapping[str, Tensor]) -> Captioner:
    """`captioner` with compressed layers where `tensors` hold such; the names tell which."""
    if any(name.endswith(".quantised") for name in tensors):
        return quantise(captioner)
    ranks = {
        name.removeprefix("decoder.").removesuffix(".left"): tensor.shape[1]
        for name, tensor in tensors.items()
        if name.endswith(".left")
    }
    return factorise_to(captioner, ranks) if ranks else captioner
