"""Benchmarks run, at sizes at which their figures mean nothing, and end with the line that tools read."""

import re
import subprocess
import sys

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import cache, caption_metrics
from trainables.captioning.settings import Settings


def ratio(name, output):
    """The claim as one number, from the last line."""
    match = re.fullmatch(rf"{name} ratio=(\d+\.\d+)", output.splitlines()[-1])
    assert match, output
    return float(match[1])


def test_every_benchmark_is_known_by_name():
    assert benchmarks.names() == ["cache", "caption_metrics", "gang_overhead", "throughput"]


@pytest.mark.slow  # imports torch in another process
@pytest.mark.timeout(40)
def test_an_unknown_name_is_refused_with_the_known_ones():
    answer = subprocess.run(
        [sys.executable, "-m", "benchmarks", "cach"], capture_output=True, text=True, timeout=30
    )
    assert answer.returncode == 2
    assert "caption_metrics" in answer.stderr


def test_the_machine_is_named():
    assert re.search(
        r"^\d{4}-\d\d-\d\d \| .+, \d+ cores? \| python 3\.\d+\.\d+ torch \d", benchmarks.hardware()
    )


def test_caption_metrics(monkeypatch, capsys):
    monkeypatch.setattr(caption_metrics, "IMAGES", 60)
    caption_metrics.main()
    assert ratio("caption_metrics", capsys.readouterr().out) > 0


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_cache_prepares_once(capsys):
    tiny = Settings(encoder_width=4, decoder_width=8, decoder="gru")
    cache.main(photos=20, epochs=1, cases=(cache.Case("tiny", 16, tiny),))
    output = capsys.readouterr().out
    assert re.search(r"20 images decoded; again: .* 0 images decoded", output)
    assert ratio("cache", output) > 0


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_both_sides_of_cache_train_on_the_same_pairs(tmp_path):
    cache.write_photos(tmp_path / "photos", 20, width=80, height=60)
    told = {"format": "flickr8k", "path": tmp_path / "photos", "image_size": 32, "cache": tmp_path / "cache"}
    data = cache.prepare(cache.DataSettings(**told))
    files = list(cache.steps_from_files(cache.Files(tmp_path / "photos", data, 32), epoch=1))
    cached = list(cache.steps_from_cache(data, None, epoch=1))
    assert len(files) == len(cached) > 0
    for one, other in zip(files, cached, strict=True):
        assert one.global_tokens == other.global_tokens
        assert (one.micro_batches[0].tokens == other.micro_batches[0].tokens).all()
        difference = one.micro_batches[0].inputs.float() - other.micro_batches[0].inputs.float()
        assert difference.abs().mean() < 6  # the same photographs, by another resize
