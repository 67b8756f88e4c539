import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from trainables.captioning.metrics import bleu4, caption_metrics, cider_d, rouge_l, tokenize

REFERENCES = [
    [
        "A brown dog runs across the wet grass with a red ball in its mouth .",
        "A dog carries a ball through a field .",
        "The brown dog is running with a ball .",
        "A wet dog is running on the grass",
        "Dog running in a green field .",
    ],
    [
        "Two children play in the sand near the sea .",
        "Two kids are building a sandcastle on the beach .",
        "Children in swimsuits dig in the sand .",
    ],
    [
        "A man in a blue T-shirt climbs a steep rock face .",
        "A rock climber hangs from the cliff .",
        "A man climbing up a rock , with a rope .",
        "The climber isn't wearing a helmet .",
    ],
    ["A girl's bicycle leans against the wall .", "A bike is parked by a brick wall ."],
]
CANDIDATES = [
    "a brown dog is running in the grass with a ball",
    "two children play on the beach",
    "a man in a blue shirt climbs a rock",
    "a man is riding a bike on a street",
]

words = st.lists(st.sampled_from(["a", "dog", "runs", "on", "grass", "éclair", "犬"]), max_size=9).map(
    " ".join
)
some_words = words.filter(bool)


def oracle(scorer, candidates, references):
    images = range(len(candidates))
    return scorer.compute_score(
        {i: list(references[i]) for i in images}, {i: [candidates[i]] for i in images}
    )


def tokenized():
    return (
        [" ".join(tokenize(caption)) for caption in CANDIDATES],
        [[" ".join(tokenize(caption)) for caption in group] for group in REFERENCES],
    )


def test_figures_of_real_captions_equal_the_coco_evaluation():
    candidates, references = tokenized()
    figures = caption_metrics(CANDIDATES, REFERENCES)
    assert figures["rouge_l"] == pytest.approx(oracle(Rouge(), candidates, references)[0], abs=1e-9)
    assert figures["cider"] == pytest.approx(oracle(Cider(), candidates, references)[0], abs=1e-9)
    bleu = Bleu(4).compute_score(
        dict(enumerate(references)), {i: [c] for i, c in enumerate(candidates)}, verbose=0
    )
    assert figures["bleu4"] == pytest.approx(bleu[0][3], abs=1e-6)
    assert 0.5 < figures["cider"] < 10 and 0.2 < figures["bleu4"] < 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(some_words, st.lists(some_words, min_size=1, max_size=4)), min_size=1, max_size=6))
def test_each_image_scores_as_pycocoevalcap_scores_it(images):
    candidates = [candidate for candidate, _ in images]
    references = [group for _, group in images]
    np.testing.assert_allclose(
        rouge_l(candidates, references), oracle(Rouge(), candidates, references)[1], atol=1e-9
    )
    np.testing.assert_allclose(
        cider_d(candidates, references), oracle(Cider(), candidates, references)[1], atol=1e-9
    )


def test_long_captions_and_short_ones_together():
    long = " ".join(f"word{i % 37}" for i in range(150))
    candidates = [long, "a dog", "a a a a a a"]
    references = [[long[7:], "word1 word3 word2"], ["a dog runs", "dog"], ["a dog", "a a"]]
    np.testing.assert_allclose(
        rouge_l(candidates, references), oracle(Rouge(), candidates, references)[1], atol=1e-9
    )
    np.testing.assert_allclose(
        cider_d(candidates, references), oracle(Cider(), candidates, references)[1], atol=1e-9
    )


def test_an_empty_candidate_scores_nothing_and_leaves_the_others_alone():
    candidates, references = tokenized()
    candidates[1] = ""
    np.testing.assert_allclose(
        cider_d(candidates, references), oracle(Cider(), candidates, references)[1], atol=1e-9
    )
    assert rouge_l(candidates, references)[1] == cider_d(candidates, references)[1] == 0
    assert bleu4(candidates, references) > 0


def test_images_with_fewer_references_are_as_strict_as_others():
    """A reference that is not there has no length that a short caption could be near to."""
    candidates, longer = ["a dog runs fast", "a red bird sings"], ["a red bird sings in a tree"]
    uneven = bleu4(candidates, [["a dog runs fast"] * 2, longer])
    assert uneven == pytest.approx(bleu4(candidates, [["a dog runs fast"], longer])) and uneven < 0.8


def test_nothing_but_empty_captions():
    assert caption_metrics(["", ""], [[""], ["...", "!"]]) == {"bleu4": 0, "rouge_l": 0, "cider": 0}


def test_a_candidate_equal_to_its_only_reference_is_perfect():
    references = [[group[0]] for group in REFERENCES]
    figures = caption_metrics([group[0] for group in references], references)
    assert figures == {"bleu4": pytest.approx(1), "rouge_l": pytest.approx(1), "cider": pytest.approx(10)}


def test_spaces_are_not_words():
    assert rouge_l(["a  dog"], [["a dog "]]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A man's T-shirt, isn't it?", "a man 's t-shirt is n't it"),
        ("Two dogs -- running (fast) . \r\n", "two dogs running fast"),
        ("a 3.5 m high wall at 10:30", "a 3.5 m high wall at 10:30"),
        ("“Quoted” don’t", "quoted do n't"),
        ("Cafe\u0301 für नमस्ते", "café für नमस्ते"),
        ("the climbers' rope", "the climbers rope"),
        (" .,!", ""),
    ],
)
def test_tokenisation(caption, expected):
    assert " ".join(tokenize(caption)) == expected


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ([], [], "at least one"),
        (["a"], [["a"], ["b"]], "1 candidates and 2"),
        (["a"], [[]], r"references\[0\]"),
    ],
)
def test_wrong_input_is_named(candidates, references, message):
    with pytest.raises(ValueError, match=message):
        cider_d(candidates, references)
