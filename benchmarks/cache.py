"""An epoch from the cache against the same epoch decoding files, and that preparing twice prepares once.

The photographs are noise with the spectrum of photographs (power falls with the square of the frequency),
of Flickr8k's size, 500 x 375 pixels and about 120 kB of JPEG, in Flickr8k's layout with five captions each.
An epoch is over image-caption pairs. The alternative is what one writes first: a `Dataset` that opens,
decodes and resizes the image of a pair, in a `DataLoader` of the training process (a trial has one core,
further processes would take it from the model); a frozen encoder runs in each step. Captioner, batches,
their order, optimizer and trainer are the same on both sides. One thread, or a GPU where there is one; each
side's fastest epoch, taken in turn.

The ratio in the last line is that of frozen features. With images cached and an encoder that is trained, the
gain is bounded by what the encoder takes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from trainables.captioning.data.cache import CaptionData, prepare
from trainables.captioning.data.features import cached_features
from trainables.captioning.data.loader import Batch, Features, Step, steps_per_epoch, train_steps
from trainables.captioning.data.shapes import captions
from trainables.captioning.model.captioner import Captioner
from trainables.captioning.model.encoders import build_encoder
from trainables.captioning.settings import DataSettings, Settings
from trainables.captioning.train import Trainer
from trainables.gang import resolve_precision

PHOTOS = 100
EPOCHS = 2


@dataclass(frozen=True)
class Case:
    """What is trained."""

    name: str
    image_size: int
    settings: Settings


BATCH_SIZE = 64
CASES = (
    Case("images, cnn 16, 64 px", 64, Settings(encoder_width=16)),
    Case("images, cnn 32, 224 px", 224, Settings()),
    Case("frozen features, 224 px", 224, Settings(encoder="efficientnet_lite0", encoder_trainable=False)),
)


def write_photos(folder: Path, count: int, width: int = 500, height: int = 375, seed: int = 0) -> None:
    """`count` JPEG files and their captions, in the layout of Flickr8k."""
    (folder / "Images").mkdir(parents=True)
    lines = ["image,caption"]
    rng = np.random.default_rng(seed)
    for index in range(count):
        Image.fromarray(_photo(rng, width, height)).save(folder / "Images" / f"{index:05}.jpg", quality=90)
        lines += [f"{index:05}.jpg,{caption}" for caption in captions(seed, index)]
    (folder / "captions.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _photo(rng: np.random.Generator, width: int, height: int) -> NDArray[np.uint8]:
    """uint8 [height, width, 3]: amplitudes of a photograph, random phases, channels that go together."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = 1 / np.maximum(frequency, 1 / width)
    layers = []
    for _ in range(4):  # grey, and the colours' departures from it
        phases = np.exp(2j * np.pi * rng.random(amplitude.shape))
        layer = np.fft.irfft2(amplitude * phases, s=(height, width))
        layers.append(layer / layer.std())
    grey, *colours = layers
    return np.stack([128 + 40 * grey + 20 * colour for colour in colours], -1).clip(0, 255).astype(np.uint8)


class Files(Dataset):
    """Pairs of an image, decoded when asked for, and the tokens of a caption."""

    def __init__(self, folder: Path, data: CaptionData, image_size: int):
        self.folder, self.data, self.image_size = folder, data, image_size

    def __getitem__(self, caption: int) -> tuple[NDArray[np.uint8], int]:
        """Pixels uint8 [S, S, 3] of the caption's image; the caption's index."""
        name = self.data.names[self.data.caption_image[caption]]
        with Image.open(self.folder / "Images" / name) as file:
            image = file.convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        return np.asarray(
            square.resize((self.image_size, self.image_size), Image.Resampling.BILINEAR)
        ), caption

    def collate(self, items: list[tuple[NDArray[np.uint8], int]]) -> Batch:
        """A batch as the trainer wants it."""
        chosen = np.array([caption for _, caption in items])
        longest = int(self.data.lengths[chosen].max())
        tokens = torch.from_numpy(self.data.tokens[chosen, : longest + 1].astype(np.int64))
        return Batch(torch.from_numpy(np.stack([pixels for pixels, _ in items])), tokens, chosen)


def steps_from_files(files: Files, epoch: int) -> Iterator[Step]:
    """The epoch's steps, its images decoded on the way."""
    order = [step.micro_batches[0].captions.tolist() for step in steps_from_cache(files.data, None, epoch)]
    for batch in DataLoader(files, batch_sampler=order, collate_fn=files.collate):
        yield Step([batch], global_tokens=batch.target_tokens, captions=len(batch.captions))


def steps_from_cache(data: CaptionData, features: Features, epoch: int) -> Iterator[Step]:
    """The epoch's steps as a trial gets them."""
    return train_steps(data, epoch=epoch, seed=0, batch_size=BATCH_SIZE, features=features)


def compare(case: Case, folder: Path, cache: Path, epochs: int) -> dict[str, float]:
    """Seconds per epoch, of which waiting for data, from files and from the cache."""
    told = DataSettings(format="flickr8k", path=folder, image_size=case.image_size, cache=cache)
    data = prepare(told)
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    captioner = Captioner(case.settings, data.tokenizer.vocabulary_size, case.image_size).to(device)
    features: Features = None
    if not case.settings.encoder_trainable:
        encoder = build_encoder(case.settings, case.image_size).to(device)
        features = cached_features(data, encoder, device=device)
    trainer = Trainer(
        captioner,
        case.settings,
        precision=resolve_precision("auto", device),
        steps_per_epoch=steps_per_epoch(data, BATCH_SIZE),
        max_epochs=2 * epochs,
        device=device,
    )
    files = Files(folder, data, case.image_size)
    best: dict[str, float] = {}
    for epoch in range(2 * epochs):
        side = "cache" if epoch % 2 else "files"
        steps = steps_from_cache(data, features, epoch) if epoch % 2 else steps_from_files(files, epoch)
        begin = time.perf_counter()
        waited = trainer.train_epoch(epoch, steps)["data_wait_s"]
        seconds = time.perf_counter() - begin
        if seconds < best.get(side, np.inf):
            best |= {side: seconds, f"{side} wait": waited}
    return best


def main(photos: int = PHOTOS, epochs: int = EPOCHS, cases: tuple[Case, ...] = CASES) -> None:
    """Print the table and the ratio."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, cache = Path(name) / "photos", Path(name) / "cache"
        write_photos(folder, photos)
        told: dict[str, Any] = {"format": "flickr8k", "path": folder, "cache": cache}
        preparing = []
        for _ in range(2):
            begin = time.perf_counter()
            decoded = prepare(DataSettings(**told, image_size=cases[-1].image_size)).decoded
            preparing.append(f"{time.perf_counter() - begin:.2f} s, {decoded} images decoded")
        assert decoded == 0, f"preparing again decoded {decoded} images"
        print("prepare: " + "; again: ".join(preparing))
        print(f"{'seconds per epoch':26}{'files (waiting)':>18}{'cache (waiting)':>18}{'ratio':>8}")
        for case in cases:
            took = compare(case, folder, cache, epochs)
            ratio = took["files"] / took["cache"]
            columns = (f"{took[side]:.2f} ({took[f'{side} wait']:.3f})" for side in ("files", "cache"))
            print(f"{case.name:26}" + "".join(f"{text:>18}" for text in columns) + f"{ratio:8.1f}")
    print(f"cache ratio={ratio:.1f}")
