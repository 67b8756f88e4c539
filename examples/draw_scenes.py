"""`python examples/draw_scenes.py FOLDER`: three scenes that no trial has seen, as PNG, for `make demo`."""

import sys
from pathlib import Path

from PIL import Image

from trainables.captioning.data.shapes import SceneSource, captions

SEED = 1  # the example's data is drawn with seed 0


def main(folder: Path) -> None:
    """Write the images and print what a person would say about each."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(3):
        path = folder / f"scene-{index}.png"
        Image.fromarray(SceneSource(SEED, index).pixels(256)).save(path)
        print(f"{path}  a person says: {captions(SEED, index)[0]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
