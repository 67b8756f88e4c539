"""The shapes generator: the same everywhere, true to what it shows, varied."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from trainables.captioning.data import shapes

FINGERPRINT = """
import hashlib
from trainables.captioning.data import shapes
digest = hashlib.sha256()
for index in range(20):
    digest.update(repr(shapes.captions(7, index)).encode())
    digest.update(shapes.SceneSource(7, index).pixels(32).tobytes())
print(digest.hexdigest())
"""


def test_scenes_captions_and_pixels_are_the_same_in_another_process():
    digest = hashlib.sha256()
    for index in range(20):
        digest.update(repr(shapes.captions(7, index)).encode())
        digest.update(shapes.SceneSource(7, index).pixels(32).tobytes())
    other = subprocess.run([sys.executable, "-c", FINGERPRINT], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest.hexdigest()


def test_seeds_and_indices_make_different_images_and_captions():
    assert shapes.scene(0, 0) != shapes.scene(0, 1) != shapes.scene(1, 1)
    said = {shapes.captions(0, index) for index in range(100)}
    assert len(said) == 100
    assert all(len(captions) == shapes.CAPTIONS_PER_IMAGE for captions in said)


@pytest.mark.parametrize("size", [16, 33, 64])
def test_an_image_has_the_size_asked_for(size):
    pixels = shapes.SceneSource(0, 3).pixels(size)
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8
    assert pixels.std() > 5


def test_captions_say_only_what_the_scene_shows():
    for index in range(300):
        scene = shapes.scene(3, index)
        shown = {thing.colour for thing in scene.things}
        kinds = {name for thing in scene.things for name in shapes.NAMES[thing.shape]}
        for caption in shapes.captions(3, index):
            text = caption.lower().replace(f"{scene.background} background", "")
            assert {word for word in text.replace(",", "").split() if word in shapes.COLOURS} <= shown
            assert any(name in text for name in kinds)
            for count, word in shapes.NUMBERS.items():
                assert word not in text.split() or len(scene.things) == count


def test_left_of_is_left():
    told = 0
    for index in range(300):
        things = {thing.colour: thing for thing in shapes.scene(5, index).things}
        for caption in shapes.captions(5, index):
            before, relation, after = caption.lower().partition(" left of ")
            if relation:
                first = next(c for c in things if c in before)
                second = next(c for c in things if c in after.split(" on ")[0].split(" in ")[0])
                assert things[first].x < things[second].x
                told += 1
    assert told > 20


def test_what_is_drawn_has_its_colour_in_its_place():
    near = 0
    things = [(index, thing) for index in range(60) for thing in shapes.scene(0, index).things[-1:]]
    plain = [(index, thing) for index, thing in things if not thing.striped]
    for index, thing in plain:
        pixels = shapes.SceneSource(0, index).pixels(64).astype(float)
        row, column = int(thing.y * 64), int(thing.x * 64)
        seen = pixels[row - 2 : row + 3, column - 2 : column + 3].mean(axis=(0, 1))
        # Shade and jitter move colours; relative to all names, the right one is mostly the nearest.
        distance = {name: np.abs(np.array(rgb) * 0.92 - seen).sum() for name, rgb in shapes.COLOURS.items()}
        near += min(distance, key=distance.__getitem__) == thing.colour
    assert near > 0.8 * len(plain)
