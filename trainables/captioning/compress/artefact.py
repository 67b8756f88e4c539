"""What ships: a folder with the weights, the tokenizer and the settings, and a captioner made of it again.

Needs torch, tokenizers, Pillow and this package; no Ray, no experiment. Layout:

* `weights.safetensors`: every tensor as its encoding says (`encoding.py`): one of less than float32 under its
  own name, `NAME.scale` and `NAME.bits`, with kind and shape in the file's metadata.
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
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from trainables.captioning.compress.arithmetic import fast, float_state
from trainables.captioning.compress.encoding import SPARSE, Encoding, decode, encode
from trainables.captioning.compress.rebuild import rebuilt
from trainables.captioning.data.images import FileSource, square
from trainables.captioning.data.items import BadImage
from trainables.captioning.data.tokenizer import CaptionTokenizer
from trainables.captioning.model.captioner import Captioner
from trainables.captioning.settings import Settings

WEIGHTS, CONFIG, TOKENIZER = "weights.safetensors", "config.json", "tokenizer.json"
#: Raise when an older version could not read what is written.
FORMAT = 2
_ENCODED = "encoded"


def size_bytes(captioner: Captioner) -> int:
    """Bytes of the weights file that `save_artefact` would write, without writing it."""
    return len(_weights_file(captioner))


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
        captioner: as shipped: its weights on the grids of their encodings.
        tokenizer: that it was trained with.
        folder: existing files of the artefact's names in it are overwritten.
        max_tokens: longest caption, the end token included.
        facts: for the reader of `config.json` (trial, metrics, data set); anything JSON can hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(_weights_file(captioner))
    tokenizer.save(folder / TOKENIZER)
    config = {
        "format": FORMAT,
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
            try:
                return FileSource.of(Path(image)).pixels(size)
            except BadImage as error:
                raise BadImage(f"{image}: {error}") from error
        if isinstance(image, np.ndarray):
            if image.shape == (size, size, 3) and image.dtype == np.uint8:
                return image  # resized already, for instance by the cache
            image = Image.fromarray(image)
        try:
            return square(image, size)
        except (OSError, SyntaxError) as error:  # one that Pillow opened and has not read until now
            raise BadImage(f"{getattr(image, 'filename', None) or 'an image'}: {error}") from error


def load_artefact(folder: Path) -> Artefact:
    """The captioner that `save_artefact` wrote into `folder`, on the CPU; writes the same captions.

    Raises:
        FileNotFoundError, ValueError: see `read_artefact`.
    """
    artefact = read_artefact(folder)
    artefact.captioner = fast(artefact.captioner)
    return artefact


def read_artefact(folder: Path) -> Artefact:
    """As `load_artefact`, but computing in float32 throughout.

    Raises:
        FileNotFoundError: a file of the artefact is missing.
        ValueError: the files do not belong together, or another version wrote them.
    """
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if config.get("format") != FORMAT:
        raise ValueError(
            f"{folder / CONFIG} has format {config.get('format')}, this version reads format {FORMAT}: "
            "export the trial again"
        )
    state, encodings = _read_weights(folder / WEIGHTS)
    settings = Settings.model_validate(config["settings"])
    with torch.device("meta"):  # shapes only: no initialisation, no pretrained weights, no SVD
        captioner = Captioner(
            settings, config["vocabulary_size"], config["image_size"], load_weights=False
        ).eval()
        captioner = rebuilt(captioner, {name: tuple(tensor.shape) for name, tensor in state.items()})
    try:
        captioner.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{folder / WEIGHTS} does not fit {folder / CONFIG}: {error}") from error
    captioner.encodings = encodings
    captioner.requires_grad_(False)
    tokenizer = CaptionTokenizer.load(folder / TOKENIZER)
    return Artefact(captioner, tokenizer, max_tokens=config["max_tokens"], facts=config["facts"])


def _weights_file(captioner: Captioner) -> bytes:
    tensors: dict[str, Tensor] = {}
    encoded: dict[str, Any] = {}
    for name, tensor in float_state(captioner).items():
        encoding = captioner.encodings.get(name)
        if encoding is None:
            tensors[name] = tensor.detach().cpu().contiguous()
            continue
        tensors |= {f"{name}{suffix}": part for suffix, part in encode(tensor, encoding).items()}
        encoded[name] = {"kind": encoding.kind, "sparse": encoding.sparse, "shape": list(tensor.shape)}
    return save(tensors, metadata={_ENCODED: json.dumps(encoded)})


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Encoding]]:
    """Float32 weights by name, and how they lie in the file."""
    with safe_open(path, "pt") as file:
        encoded = json.loads((file.metadata() or {}).get(_ENCODED, "{}"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state: dict[str, Tensor] = {}
    encodings: dict[str, Encoding] = {}
    for name, how in encoded.items():
        parts = {suffix: tensors.pop(f"{name}{suffix}", None) for suffix in ("", ".scale", ".bits")}
        stored = {suffix: part for suffix, part in parts.items() if part is not None}
        encodings[name] = Encoding(how["kind"], SPARSE if how["sparse"] else 1.0)
        state[name] = decode(stored, tuple(how["shape"]), encodings[name])
    return tensors | state, encodings
