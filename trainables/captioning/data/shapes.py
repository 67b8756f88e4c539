"""Scenes of coloured shapes with several human-like captions each, drawn by a seeded generator.

Endless data that need no download and tell models apart: colours and brightness jitter, light and dark
backgrounds, noise, rotation and overlap make seeing hard; five captions from many templates, synonyms and
points of view (a count, a relation, one object only) make saying hard. Scene, captions and pixels depend on
(seed, index) alone. Knows nothing of splits, caches or files.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

#: Raise when what is drawn or said for a seed changes: it enters the cache's key.
VERSION = 1
CAPTIONS_PER_IMAGE = 5

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 40, 40),
    "orange": (235, 135, 30),
    "yellow": (235, 215, 50),
    "green": (50, 155, 65),
    "blue": (45, 85, 200),
    "purple": (130, 60, 165),
    "pink": (240, 140, 180),
    "brown": (125, 80, 45),
    "white": (245, 245, 240),
    "black": (30, 30, 35),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "gray": (140, 140, 145),
    "light blue": (170, 205, 230),
    "beige": (220, 205, 170),
    "dark green": (45, 75, 55),
    "dark blue": (40, 45, 85),
}
#: Corners of the regular shapes on the unit circle, radius by turns; a circle has none.
SHAPES = ("circle", "square", "triangle", "star", "hexagon", "cross")
#: How people say it; the first name is the commonest.
NAMES = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "hexagon": ("hexagon",),
    "cross": ("cross", "plus sign"),
}
SIZES = {"small": (0.09, 0.12), "medium-sized": (0.14, 0.17), "large": (0.20, 0.25)}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "medium-sized": ("",), "large": ("large", "big", "huge")}
NUMBERS = {2: "two", 3: "three"}


@dataclass(frozen=True)
class Thing:
    """One object: what it is and where, in units of the image's side."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    turn: float
    """Rotation in radians."""
    striped: bool


@dataclass(frozen=True)
class Scene:
    """What an image shows; drawn back to front."""

    background: str
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class SceneSource:
    """The image `index` of the generator `seed`, as a source of pixels."""

    seed: int
    index: int

    def identity(self) -> list[Any]:
        """Everything that the image depends on."""
        return ["shapes", VERSION, self.seed, self.index]

    def pixels(self, size: int) -> NDArray[np.uint8]:
        """Draw to uint8 [size, size, 3]."""
        return draw(scene(self.seed, self.index), size, noise_seed=(self.seed, self.index))


def scene(seed: int, index: int) -> Scene:
    """The scene `index`: one to three things, a third of the pairs and triples alike."""
    rng = _random(seed, index, "scene")
    count = rng.choice((1, 2, 2, 3))
    alike = count > 1 and rng.random() < 0.33
    spots = _spots(count, rng)
    things: list[Thing] = []
    for x, y in spots:
        if alike and things:
            shape, colour, size = things[0].shape, things[0].colour, things[0].size
        else:
            # Unlike things differ in colour, so that "the red one" names one of them.
            colour = rng.choice([c for c in COLOURS if c not in {t.colour for t in things}])
            shape, size = rng.choice(SHAPES), rng.choice(list(SIZES))
        radius = rng.uniform(*SIZES[size])
        striped = things[0].striped if alike and things else rng.random() < 0.2
        things.append(Thing(shape, colour, size, x, y, radius, rng.uniform(-0.5, 0.5), striped))
    return Scene(rng.choice(list(BACKGROUNDS)), tuple(things))


def _spots(count: int, rng: random.Random) -> list[tuple[float, float]]:
    """Centres that lie apart along one axis at least, so that "left of" or "above" is plain to see."""
    while True:
        spots = [(rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8)) for _ in range(count)]
        pairs = [(a, b) for i, a in enumerate(spots) for b in spots[:i]]
        if all(max(abs(a[0] - b[0]), abs(a[1] - b[1])) > 0.3 for a, b in pairs):
            return spots


def captions(seed: int, index: int) -> tuple[str, ...]:
    """Five captions of the scene, as five people would write them; all true, not all complete."""
    shown, rng = scene(seed, index), _random(seed, index, "captions")
    return tuple(_sentence(shown, rng) for _ in range(CAPTIONS_PER_IMAGE))


def _sentence(shown: Scene, rng: random.Random) -> str:
    things = shown.things
    if len(things) > 1 and _kind(things[0]) == _kind(things[1]):
        subject, plural = f"{NUMBERS[len(things)]} {_words(things[0], rng, plural=True)}", True
    elif len(things) == 1:
        subject, plural = _article(_words(things[0], rng)), False
    elif rng.random() < 0.6:
        first, second = rng.sample(things, 2)
        relation = _relation(first, second, rng)
        subject, plural = f"{_article(_words(first, rng))} {relation} {_article(_words(second, rng))}", False
    else:
        named = rng.sample(things, len(things))
        parts = [_article(_words(thing, rng)) for thing in named]
        subject, plural = f"{', '.join(parts[:-1])} and {parts[-1]}", True
    ground = _article(f"{shown.background} background")
    verb = "are" if plural else "is"
    form = rng.choice(
        (
            "{subject} on {ground}.",
            "{subject} on {ground}.",
            "{subject} in front of {ground}.",
            "there {verb} {subject}.",
            "a picture of {subject}.",
            "{subject}",
            "an image showing {subject} on {ground}",
        )
    )
    text = form.format(subject=subject, ground=ground, verb=verb)
    return text[0].upper() + text[1:]


def _kind(thing: Thing) -> tuple[str, str, str, bool]:
    return thing.shape, thing.colour, thing.size, thing.striped


def _words(thing: Thing, rng: random.Random, *, plural: bool = False) -> str:
    name = NAMES[thing.shape][0] if rng.random() < 0.7 else rng.choice(NAMES[thing.shape])
    if plural:
        name += "es" if name.endswith(("s", "x")) else "s"
    size = rng.choice(SIZE_WORDS[thing.size]) if rng.random() < 0.6 else ""
    striped = "striped" if thing.striped and rng.random() < 0.8 else ""
    return " ".join(word for word in (size, striped, thing.colour, name) if word)


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _relation(first: Thing, second: Thing, rng: random.Random) -> str:
    dx, dy = first.x - second.x, first.y - second.y
    if rng.random() < 0.15:
        return rng.choice(("next to", "and"))
    if abs(dx) > abs(dy):
        return rng.choice(("to the left of", "left of") if dx < 0 else ("to the right of", "right of"))
    return rng.choice(("above", "over") if dy < 0 else ("below", "under"))


def draw(shown: Scene, size: int, *, noise_seed: tuple[int, int]) -> NDArray[np.uint8]:
    """The scene as uint8 [size, size, 3]; `noise_seed` (each >= 0) settles jitter and noise."""
    rng = np.random.default_rng(noise_seed)
    side = 2 * size  # drawn at twice the size for smooth edges
    image = Image.new("RGB", (side, side), _jitter(BACKGROUNDS[shown.background], rng))
    pen = ImageDraw.Draw(image)
    for thing in shown.things:
        fill, stripe = _jitter(COLOURS[thing.colour], rng), _jitter(COLOURS[thing.colour], rng)
        if not thing.striped:
            _outline(pen, thing, side, fill)
            continue
        stripe = tuple(int(0.55 * c) if sum(stripe) > 240 else int(0.55 * c + 90) for c in stripe)
        mask = Image.new("1", (side, side))
        _outline(ImageDraw.Draw(mask), thing, side, 1)
        image.paste(fill, mask=mask)
        every = max(4, side // 16)
        bars = Image.new("1", (side, side))
        bar_pen = ImageDraw.Draw(bars)
        for top in range(0, side, every):
            bar_pen.rectangle((0, top, side, top + every // 2 - 1), fill=1)
        bars.paste(0, mask=Image.fromarray(~np.asarray(mask)))
        image.paste(stripe, mask=bars)
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float32)
    start, end = rng.uniform(0.75, 1.1, 2)
    light = np.linspace(start, end, size, dtype=np.float32)  # a shade across the image
    pixels = pixels * (light[:, None, None] if rng.random() < 0.5 else light[None, :, None])
    pixels += rng.normal(0, rng.uniform(4, 22), (size, size, 1)).astype(np.float32)
    return pixels.clip(0, 255).astype(np.uint8)


def _jitter(colour: tuple[int, int, int], rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(int(c) for c in (np.array(colour) + rng.normal(0, 14, 3)).clip(0, 255))


def _outline(pen: ImageDraw.ImageDraw, thing: Thing, side: int, fill: Any) -> None:
    x, y, radius = thing.x * side, thing.y * side, thing.radius * side
    if thing.shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        return
    if thing.shape == "cross":
        arm = 0.38
        corners = [(arm, 1), (arm, arm), (1, arm), (1, -arm), (arm, -arm), (arm, -1)]
        corners += [(-a, -b) for a, b in corners]
        angles = [(math.atan2(b, a), math.hypot(a, b)) for a, b in corners]
    else:
        count = {"square": 4, "triangle": 3, "star": 10, "hexagon": 6}[thing.shape]
        start = math.pi / 4 if thing.shape == "square" else -math.pi / 2
        dent = 0.45 if thing.shape == "star" else 1.0
        angles = [(start + 2 * math.pi * i / count, dent if i % 2 else 1.0) for i in range(count)]
    pen.polygon(
        [
            (x + radius * r * math.cos(a + thing.turn), y + radius * r * math.sin(a + thing.turn))
            for a, r in angles
        ],
        fill=fill,
    )


def _random(seed: int, index: int, purpose: str) -> random.Random:
    # A string seeds through SHA-512: the same in every process and on every machine.
    return random.Random(f"shapes/{VERSION}/{seed}/{index}/{purpose}")
