"""COCO's caption annotations, and Karpathy's file of COCO, Flickr8k and Flickr30k with its split."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainables.captioning.data.items import SPLIT_NAMES
from trainables.captioning.data.reading import Reading, Row, split_of, text
from trainables.trial import SettingsError


def read_coco(reading: Reading) -> Iterator[Row]:
    """All captions_*.json together, each image in the split its file is named after (train2017, val2017).

    A file that `data.captions_file` names is read alone, and says nothing about splits.
    """
    first = reading.caption_file("annotations/captions_*.json", "captions_*.json", "captions.json", "*.json")
    alone = reading.data.captions_file is not None
    files = [first] if alone else sorted(first.parent.glob("captions_*.json")) or [first]
    for file in files:
        year = file.stem.removeprefix("captions_")  # captions_train2017.json describes train2017/
        reading.folders += [reading.root / year, reading.root / "images" / year]
        split = None if alone else split_of(year.partition("_")[0])  # captions_train2017_small.json, too
        content = reading.json_with(file, "annotations")
        try:
            images = {image["id"]: image["file_name"] for image in content["images"]}
            captions: dict[Any, list[str]] = {id_: [] for id_ in images}
            for annotation in content["annotations"]:
                id_ = annotation["image_id"]
                if id_ in captions:
                    captions[id_].append(text(annotation["caption"]))
                else:
                    reading.bad.append((f"image_id {id_}", f"is not among the images of {file.name}"))
        except (KeyError, TypeError) as error:
            raise SettingsError(reading.file_key, f"{file} is not a COCO caption file: no {error}") from error
        for id_, name in images.items():
            yield Row(name, captions[id_], split)


def read_karpathy(reading: Reading) -> Iterator[Row]:
    """dataset_*.json: images with sentences and a split; `restval` is trained on."""
    file = reading.caption_file("dataset_*.json", "dataset.json")
    for number, image in enumerate(reading.json_with(file, "images")["images"]):
        try:
            name = "/".join(part for part in (image.get("filepath"), image["filename"]) if part)
            captions = [text(s.get("raw") or " ".join(s.get("tokens", []))) for s in image["sentences"]]
            split = image["split"]
        except (KeyError, TypeError, AttributeError) as error:
            raise SettingsError(reading.file_key, f"{file}: image {number} has no {error}") from error
        if split not in SPLIT_NAMES:
            reading.bad.append((name, f"split must be one of {', '.join(SPLIT_NAMES)}, but got {split!r}"))
            continue
        yield Row(name, captions, SPLIT_NAMES[split])
