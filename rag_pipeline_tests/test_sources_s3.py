"""A collection whose source is a bucket, on a local server that speaks S3."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from rag_pipeline.core.errors import SourceError
from rag_pipeline_tests.pipelines import Pipeline


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[fsspec.AbstractFileSystem]:
    """The file system of an S3 server with one empty bucket, `documents`."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    fsspec.filesystem("s3").clear_instance_cache()
    files = fsspec.filesystem("s3")
    files.mkdir("documents")
    yield files
    if files.exists("documents"):
        files.rm("documents", recursive=True)
    files.clear_instance_cache()
    server.stop()


def test_a_bucket_is_a_source_like_any_other(
    bucket: fsspec.AbstractFileSystem, pipeline: Pipeline, tmp_path: Path
) -> None:
    bucket.pipe("documents/manual/install.md", b"# Install\n\nThe installer unpacks a walrus.")
    bucket.pipe("documents/manual/deep/use.txt", b"Turn the crank to feed the otter.")
    bucket.pipe("documents/manual/.hidden/secret.txt", b"a badger nobody sees")
    source = "s3://documents/manual"
    with closing(Pipeline(pipeline.runtime, tmp_path / "unused", "bucket", source)) as remote:
        first = remote.run()
        assert (first.files.added, first.files.skipped, first.parsed.failed) == (2, 1, 0)
        assert remote.found("walrus") == {"install.md"}
        assert remote.found("otter") == {"deep/use.txt"}

        again = remote.run()
        assert (again.files.unchanged, again.parsed.documents, again.embedded.inserted) == (2, 0, 0)

        # As many bytes as before: it is the ETag that tells.
        bucket.pipe("documents/manual/install.md", b"# Install\n\nThe installer unpacks a weasel.")
        bucket.rm("documents/manual/deep/use.txt")
        changed = remote.run()
        assert (changed.files.changed, changed.files.removed, changed.parsed.documents) == (1, 1, 1)
        assert remote.found("weasel") == {"install.md"}
        assert remote.found("walrus") == remote.found("otter") == set()
        remote.assert_clean()


def test_a_bucket_that_cannot_be_listed_changes_nothing(
    bucket: fsspec.AbstractFileSystem, pipeline: Pipeline, tmp_path: Path
) -> None:
    bucket.pipe("documents/manual/install.md", b"The installer unpacks a walrus.")
    with closing(Pipeline(pipeline.runtime, tmp_path / "unused", "bucket", "s3://documents/manual")) as remote:
        remote.run()
        bucket.rm("documents", recursive=True)
        with pytest.raises(SourceError, match="cannot list s3://documents/manual"):
            remote.run()
        assert remote.found("walrus") == {"install.md"}
