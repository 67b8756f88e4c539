"""What a captioner stops saying: recalls against counts by hand, kinds of words on captions by people."""

import numpy as np
import pytest

from trainables.captioning.data.shapes import captions
from trainables.captioning.recall import DISCOUNT, agreed_words, lost_words, word_recall
from trainables.captioning.side_by_side import tables
from trainables.captioning.trial import Captioning
from trainables.captioning.word_kinds import content_words, kind_of, object_words
from trainables.trial import SettingsError, TrialContext

REFERENCES = [
    ["A black dog runs", "the dog is black", "an animal outside"],
    ["Two dogs and 1 grey cat", "two dogs, one gray cat"],
    ["a black cat"],
    ["a dog, a dog, a dog", "a bird"],
]


def test_function_words_are_left_out_and_spellings_joined():
    assert content_words("The 2 grey dogs aren't on a mat") == {"two", "gray", "dogs", "mat"}
    assert content_words("") == set()


def test_expected_is_what_references_agree_on():
    assert [agreed_words(group) for group in REFERENCES] == [
        {"black", "dog"},
        {"two", "dogs", "one", "gray", "cat"},
        {"black", "cat"},  # of one reference, all
        set(),  # said three times by one person
    ]


def test_recall_is_the_share_of_the_images_that_ask_for_a_word():
    a = ["a black dog", "two dogs", "a black cat", "a dog"]
    b = ["a dog", "two cats and a dog", "a black thing", "a black dog"]
    words = {each.word: each for each in word_recall(REFERENCES, a, b)}
    counts = {w: (each.images, each.said_by_a, each.said_by_b) for w, each in words.items()}
    assert counts == {
        "black": (2, 2, 1),
        "dog": (1, 1, 1),
        "two": (1, 1, 1),
        "dogs": (1, 1, 0),
        "one": (1, 0, 0),
        "gray": (1, 0, 0),
        "cat": (2, 1, 0),
    }
    black = words["black"]
    assert (black.recall_a, black.recall_b, black.fall) == (1.0, 0.5, 0.5)
    assert black.discounted_fall == pytest.approx(1 / (2 + DISCOUNT))
    assert lost_words(REFERENCES, a, b) == [["black"], ["dogs"], ["cat"], []]


def test_a_fall_in_many_images_ranks_before_one_in_few():
    references = [["red"]] * 40 + [["blue"]] * 2 + [["green"]] * 5
    a = ["red"] * 40 + ["blue"] * 2 + [""] * 5
    b = ["red"] * 20 + [""] * 20 + [""] * 2 + ["green"] * 5
    assert [each.word for each in word_recall(references, a, b)] == ["red", "blue", "green"]
    assert [each.fall for each in word_recall(references, a, b)] == [0.5, 1, -1]


def test_captions_of_other_images_are_refused():
    with pytest.raises(ValueError, match="4 groups of references, 4 and 3 captions"):
        word_recall(REFERENCES, [""] * 4, [""] * 3)


def test_objects_are_told_by_where_they_stand():
    """Drawn scenes are described with known nouns, adjectives, colours and counts."""
    said = [caption for index in range(200) for caption in captions(0, index)]
    objects = object_words(said)
    assert {"circle", "square", "triangle", "star", "circles", "stars", "background"} <= objects
    others = {
        "red",
        "two",
        "small",
        "large",
        "striped",
        "dark",
        "tiny",
        "below",
        "above",
        "a",
        "is",
        "showing",
    }
    assert not objects & others


def test_verbs_and_adjectives_are_no_objects_and_rare_words_are_unknown():
    said = ["a big dog runs on the grass", "the big black dog is jumping", "jumping over two dogs"]
    assert object_words(said * 2) == set()  # four uses each, or two
    assert object_words(said * 5) == {"dog", "grass", "dogs"}
    assert object_words(["ein großer Hund springt"] * 9) == set()


def test_kinds_of_words():
    words = ["red", "gray", "two", "13", "dog", "running"]
    assert [kind_of(word, {"dog", "red"}) for word in words] == [
        "colour", "colour", "count", "count", "object", "content"
    ]  # fmt: skip


def test_the_tables_add_up():
    rng = np.random.default_rng(0)
    said = [
        [" ".join(rng.choice(["red", "two", "dog", "dogs", "cat", "one"], 3)) for _ in range(30)]
        for _ in range(5)
    ]
    references, (a, b) = [list(group) for group in zip(*said[:3], strict=True)], said[3:]
    found = tables([f"{n}.jpg" for n in range(30)], references, a, b)
    assert list(found) == ["words", "kinds", "captions"]
    by_hand = {"red": [0, 0, 0], "two": [0, 0, 0]}
    for group, one, other in zip(references, a, b, strict=True):
        for word, counts in by_hand.items():
            if sum(word in caption.split() for caption in group) >= 2:
                counts[0] += 1
                counts[1] += word in one.split()
                counts[2] += word in other.split()
    words = {row["word"]: row for row in found["words"]}
    for word, (images, one, other) in by_hand.items():
        row = words[word]
        assert (row["images"], row["recall_a"], row["recall_b"]) == (images, one / images, other / images)
        assert row["fall"] == pytest.approx((one - other) / images)
    for row in found["kinds"]:
        members = [each for each in found["words"] if each["kind"] == row["kind"]]
        assert (row["words"], row["images"]) == (len(members), sum(each["images"] for each in members))
        assert row["recall_b"] * row["images"] == pytest.approx(
            sum(each["recall_b"] * each["images"] for each in members)
        )
    assert {row["kind"] for row in found["kinds"]} >= {"colour", "count"}
    assert sorted(row["image"] for row in found["captions"]) == sorted(f"{n}.jpg" for n in range(30))
    lengths = [len(row["lost"].split()) for row in found["captions"]]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] > 0
    for row in found["captions"]:
        place = int(row["image"].removesuffix(".jpg"))
        assert (row["a"], row["b"], row["reference"]) == (a[place], b[place], references[place][0])


SMALL = {"encoder_width": 4, "decoder_width": 24, "batch_size": 32, "learning_rate": 1e-2, "beam_width": 1}


@pytest.mark.timeout(60)  # trains two captioners
def test_two_captioners_are_compared_on_the_validation_images(tmp_path):
    data = {"format": "shapes", "size": 60, "image_size": 24, "min_frequency": 1}
    data["cache"] = str(tmp_path / "cache")
    Captioning.prepare(data, SMALL)
    for name, epochs in (("a", 8), ("b", 1)):
        captioning = Captioning()
        captioning.setup(SMALL, TrialContext(trial_id=name, max_epochs=8, data=data))
        for _ in range(epochs):
            captioning.train_epoch()
        names, validation = captioning.data.names, captioning.data.splits["val"]
        (tmp_path / f"{name}-checkpoint").mkdir()
        captioning.save(tmp_path / f"{name}-checkpoint")
        Captioning.export(tmp_path / f"{name}-checkpoint", tmp_path / name)
    found = Captioning.compare(tmp_path / "a", tmp_path / "b", data)
    assert {row["image"] for row in found["captions"]} == {names[image] for image in validation}
    assert any(row["a"] != row["b"] for row in found["captions"])
    same = Captioning.compare(tmp_path / "a", tmp_path / "a", data)
    assert {row["fall"] for row in same["words"]} == {0.0} and max(r["recall_a"] for r in same["words"]) > 0
    with pytest.raises(SettingsError):
        Captioning.compare(tmp_path / "a", tmp_path / "b", data | {"format": "shape"})
