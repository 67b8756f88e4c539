"""Files at a URL: what is refused, what is struck out, and a real S3 server that holds checkpoints."""

from pathlib import Path

import pytest
from servers import new_bucket, s3

from trainables.checkpoint_files import CheckpointUrl, checkpoint_at, saved_for_upload, with_folders
from trainables.patience import StorageFailed, patiently
from trainables.store import Store, is_url, local, refuse_url, store_is_away, under, without_secrets


@pytest.fixture(scope="module")
def bucket():
    with s3() as address:
        yield new_bucket(address)


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("ftp://host/results", "begins with s3://"),
        ("s3://key:secret@bucket/results", "no secret"),
        ("s3://key@bucket/results", "no secret"),
        ("s3://bucket/results?secret_key=x", "no secret"),
        ("abfss://a@b.dfs.core.windows.net/x?sas_token=x", "no secret"),
        ("s3:///results", "names no bucket"),
    ],
)
def test_urls_that_cannot_hold_results_are_refused(url, rule):
    with pytest.raises(ValueError, match=rule):
        refuse_url(url)


@pytest.mark.parametrize(
    "url", ["s3://bucket", "gs://bucket/a/b", "abfss://box@account.dfs.core.windows.net/results"]
)
def test_urls_of_object_stores_are_taken(url):
    refuse_url(url)
    assert is_url(url) and without_secrets(url) == url


def test_a_file_url_is_a_folder():
    assert local("file:///data/results") == "/data/results" and not is_url(local("file:///data"))
    assert local("s3://bucket") == "s3://bucket" and not is_url("relative/folder")


def test_places_below_a_place():
    assert under("/data", "a", "b") == "/data/a/b"
    assert under("s3://bucket/?region=x", "a") == "s3://bucket/a?region=x"


def test_secrets_are_struck_out():
    text = "--set storage=s3://key:secret@bucket/x?secret_key=abc&region=eu"
    assert without_secrets(text) == "--set storage=s3://***@bucket/x?secret_key=***&region=eu"


def test_a_store_that_is_away_is_waited_for_and_a_missing_file_is_not():
    answers, pauses = [OSError("AWS Error NETWORK_CONNECTION"), OSError("AWS Error SLOW_DOWN"), "here"], []

    def attempt():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert patiently(attempt, away=store_is_away, sleep=pauses.append) == "here" and len(pauses) == 2
    answers[:] = [FileNotFoundError("none")]
    with pytest.raises(FileNotFoundError):
        patiently(attempt, away=store_is_away, sleep=pauses.append)
    answers[:] = [OSError("away")] * 9
    with pytest.raises(StorageFailed, match="storage was away"):
        patiently(attempt, away=store_is_away, patience_s=0.0)


@pytest.mark.timeout(60)
def test_files_come_and_go_on_s3(bucket, tmp_path):
    store = Store(bucket)
    store.put("a/one", b"1")
    (tmp_path / "two").write_bytes(b"22")
    store.upload(tmp_path / "two", "a/b/two")
    store.copy("a/one", "three")
    assert store.files() == {"a/one": 1, "a/b/two": 2, "three": 1}
    assert store.files("a", deep=False) == {"a/one": 1} and store.folders() == ["a"]
    store.download("a/b/two", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"22" and store.read("three") == b"1"
    store.put("three", b"4")
    store.delete("a/one")
    store.delete("a/one")
    assert store.read("three") == b"4" and not store.has("a/one") and store.files("nothing") == {}
    with pytest.raises(FileNotFoundError):
        store.read("a/one")


@pytest.mark.timeout(60)
def test_a_checkpoint_goes_to_s3_as_one_file_and_comes_back_whole(bucket):
    def save(folder):
        (folder / "deep").mkdir()
        (folder / "deep" / "weights").write_bytes(b"w" * 6_000_000)
        (folder / "settings").write_text("s")

    url = under(bucket, "x", "checkpoints", "00000", "0003")
    saved_for_upload(save, url)()
    assert list(Store(bucket).files("x")) == ["x/checkpoints/00000/0003.tar"]
    with checkpoint_at(url) as folder:
        assert (folder / "deep" / "weights").stat().st_size == 6_000_000
        assert (folder / "settings").read_text() == "s"
    assert not folder.exists()
    with pytest.raises(FileNotFoundError), checkpoint_at(under(bucket, "x", "0009")):
        pass


@pytest.mark.timeout(60)
def test_a_save_that_fails_leaves_what_was_there(bucket):
    url = under(bucket, "y", "0001")
    saved_for_upload(lambda folder: (folder / "state").write_text("before"), url)()

    def fail(folder):
        (folder / "state").write_text("half")
        raise RuntimeError("in mid-save")

    with pytest.raises(RuntimeError):
        saved_for_upload(fail, url)
    with checkpoint_at(url) as folder:
        assert (folder / "state").read_text() == "before"


@pytest.mark.timeout(60)
def test_a_parent_is_fetched_once_and_anew_where_it_is_another(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("CAPTUNE_CACHE", str(tmp_path))
    url = CheckpointUrl(under(bucket, "z", "checkpoints", "00000", "0003"))
    saved_for_upload(lambda folder: (folder / "state").write_text("first"), url)()
    parent = Path(with_folders({"parent": url, "rate": 0.1})["parent"])
    assert parent.parts[-3:] == ("checkpoints", "00000", "0003")
    assert (parent / "state").read_text() == "first"
    (parent / "mark").touch()
    assert Path(with_folders({"parent": url})["parent"], "mark").exists()
    saved_for_upload(lambda folder: (folder / "state").write_text("second" * 9999), url)()
    assert Path(with_folders({"parent": url})["parent"], "state").read_text().startswith("second")


def test_only_another_trials_checkpoint_is_fetched_for_a_trainable():
    config = {"weights": "s3://models/checkpoints/vgg/16", "parent": "/results/checkpoints/00001/0002"}
    assert with_folders(config) == config
