"""Shards behind a web server: read like local ones, by ranges or as a stream, and again when the connection fails."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from data import remote
from data.datamodule import PackedDataModule
from data.index import ShardReader, build_index, ensure_index, verify_index
from data.mixtures import Source
from data.shards import ShardError, expand, read_samples
from data.sidecars import CACHE_VARIABLE
from models.plan import BatchPlan

pytest.importorskip("aiohttp")


@dataclass
class Server:
    """A web server over a folder, and what it did.

    Args:
        address: Its address.
        ranges: Whether it serves ranges.
        declared: What it says about that.
        failures: How many of the next requests for data end half way.
        sent: Bytes of data that it has sent.
        written: Requests to write.
    """

    address: str = ""
    ranges: bool = True
    declared: str | None = "bytes"
    failures: int = 0
    sent: int = 0
    written: list[str] = field(default_factory=list)


@pytest.fixture
def server(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_PUT(self) -> None:
            state.written.append(self.path)
            self.send_error(405)

        do_POST = do_PUT

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self, body: bool) -> None:
            path = shards / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            data, asked = path.read_bytes(), self.headers.get("Range")
            start, end = 0, len(data)
            if state.ranges and asked is not None:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                start, end = int(first), min(int(last or len(data) - 1) + 1, len(data))
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
            else:
                self.send_response(200)
            if state.declared is not None:
                self.send_header("Accept-Ranges", state.declared)
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            if not body:
                return
            part = data[start:end]
            if state.failures:
                state.failures -= 1
                self.close_connection = True
                part = part[: len(part) // 2]
            state.sent += len(part)
            self.wfile.write(part)

    class Many(http.server.ThreadingHTTPServer):
        request_queue_size = (
            128  # the parts of a file are asked for at once; a connection beyond the queue waits seconds
        )
        daemon_threads = True

    with Many(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        state.address = f"http://127.0.0.1:{served.server_port}"
        monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
        monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.01)
        yield state
        served.shutdown()


def addresses(server: Server, shards: Path) -> list[str]:
    return [f"{server.address}/{Path(path).name}" for path in expand(shards)]


@pytest.mark.parametrize(("ranges", "declared"), [(True, "bytes"), (True, None), (False, "none"), (False, None)])
def test_samples_are_those_of_the_local_shards(
    server: Server, shards: Path, ranges: bool, declared: str | None
) -> None:
    server.ranges, server.declared = ranges, declared
    assert list(read_samples(addresses(server, shards))) == list(read_samples(shards))


def test_a_connection_that_fails_is_tried_again(server: Server, shards: Path) -> None:
    server.failures = 3
    assert list(read_samples(addresses(server, shards))) == list(read_samples(shards))
    assert server.failures == 0


def test_a_server_that_stays_away_costs_its_shard_and_is_named(server: Server, shards: Path) -> None:
    server.failures = 1000
    with pytest.raises(ShardError, match=r"http://127.*cannot be read"):
        list(read_samples(addresses(server, shards)[0]))
    told: list[str] = []
    list(read_samples(addresses(server, shards)[:1], lambda path, key, error: told.append(str(error))))
    assert told and "attempts" in told[-1]


def test_single_samples_are_read_by_ranges_and_nothing_more(server: Server, shards: Path) -> None:
    address, local = addresses(server, shards)[0], expand(shards)[0]
    index = ensure_index(address)
    assert index.entries == build_index(local).entries and index.fingerprint == build_index(local).fingerprint
    verify_index(index)
    reader, before = ShardReader(), server.sent
    for position in (5, 0, 17):
        entry = index.entries[position]
        sample = reader.read(index, position)
        assert sample == ShardReader().read(build_index(local), position)
        size = sum(length + 2 * 512 for _, length in entry.members.values())
        assert server.sent - before <= size
        before = server.sent


def test_the_index_of_a_server_that_takes_none_lies_in_the_cache(
    server: Server, shards: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    address = addresses(server, shards)[0]
    index, whole = ensure_index(address), Path(expand(shards)[0]).stat().st_size
    assert len(list((tmp_path / "cache" / "sidecars").iterdir())) == 1
    sent = server.sent
    assert ensure_index(address) == index
    assert server.sent - sent < whole / 2  # the probes of the fingerprint
    assert not server.written
    assert not [item for item in recwarn if "cannot be written" in str(item.message)]


def test_indexed_and_streamed_steps_are_those_of_local_shards(server: Server, shards: Path, plan: BatchPlan) -> None:
    def keys(paths: Any, reading: Any) -> list[list[str]]:
        settings: dict[str, Any] = {"max_tokens": 256, "seed": 1, "num_workers": 2, "shuffle_buffer": 8}
        module = PackedDataModule([Source(paths)], plan=plan, reading=reading, **settings)
        module.prepare_data()
        return [pack.keys for step in islice(module.train_dataloader(), 12) for pack in step.packs]

    local = [str(path) for path in expand(shards)]
    for reading in ("indexed", "streaming"):
        assert keys(addresses(server, shards), reading) == keys(local, reading)


def test_a_server_without_ranges_cannot_be_indexed(server: Server, shards: Path) -> None:
    server.ranges = False
    with pytest.raises(ShardError, match="serves no ranges"):
        ensure_index(addresses(server, shards)[0])
