"""Shards in a bucket, behind a server that speaks S3: read by index, streamed and one by one like local ones."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from data.datamodule import PackedDataModule
from data.index import ShardReader, build_index, ensure_index
from data.mixtures import Source
from data.shards import ShardError, ShardWriter, expand, read_samples
from data.sidecars import CACHE_VARIABLE
from models.plan import BatchPlan
from tests.data.conftest import text_record

pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")
boto3 = pytest.importorskip("boto3")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("local")
    with ShardWriter(directory, "texts", 10) as shards:
        for number in range(30):
            shards.write(text_record(f"sample{number:02d}"), {})
    return directory


@pytest.fixture(scope="module")
def bucket(local: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a bucket that holds the local shards."""
    running = server.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        client = boto3.client("s3")
        client.create_bucket(Bucket="corpus")
        for path in expand(str(local)):
            client.upload_file(path, "corpus", f"train/{Path(path).name}")
        yield "s3://corpus/train"
        running.stop()


def test_a_bucket_is_listed_and_read_like_a_folder(bucket: str, local: Path) -> None:
    paths = expand(f"{bucket}/texts-*.tar")
    assert [Path(path).name for path in paths] == [Path(path).name for path in expand(str(local))]
    assert list(read_samples(paths)) == list(read_samples(str(local)))


def test_single_samples_are_read_by_their_index(bucket: str, local: Path) -> None:
    path, twin = expand(f"{bucket}/texts-*.tar")[1], expand(str(local))[1]
    index = ensure_index(path)
    assert index.entries == build_index(twin).entries
    assert ShardReader().read(index, 7) == ShardReader().read(build_index(twin), 7)


@pytest.mark.parametrize("reading", ["indexed", "streaming"])
def test_steps_are_those_of_local_shards(bucket: str, local: Path, plan: BatchPlan, reading: Any) -> None:
    def keys(place: str) -> list[list[str]]:
        module = PackedDataModule([Source(place)], plan=plan, reading=reading, max_tokens=256, seed=1, shuffle_buffer=8)
        module.prepare_data()
        return [pack.keys for step in islice(module.train_dataloader(), 6) for pack in step.packs]

    assert keys(f"{bucket}/texts-*.tar") == keys(str(local / "texts-*.tar"))


def test_what_is_not_there_is_named(bucket: str) -> None:
    with pytest.raises((ShardError, ValueError), match=r"s3://corpus/train/other"):
        list(read_samples(f"{bucket}/other-000000.tar"))
