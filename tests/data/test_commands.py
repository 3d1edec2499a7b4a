from __future__ import annotations

from pathlib import Path

import pytest

from data.__main__ import main
from data.index import index_path
from data.shards import ShardWriter, expand
from tests.data.conftest import image_sample, text_record


def test_good_shards(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(shards)]) == 0
    assert "3 shards, 60 good samples, 0 errors" in capsys.readouterr().out
    assert main(["index", str(shards)]) == 0
    assert all(Path(index_path(path)).is_file() for path in expand(shards))
    assert "3 shards, 60 samples" in capsys.readouterr().out
    assert main(["inspect", str(shards)]) == 0
    assert "scene" in capsys.readouterr().out
    assert main(["inspect", str(shards), "--key", "image-3"]) == 0
    shown = capsys.readouterr().out
    assert '"prompt": "red 7"' in shown and "scene.png: " in shown
    assert main(["inspect", str(shards), "--key", "image-99"]) == 1


def test_what_is_wrong_is_listed_without_stopping(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, members = image_sample("image-bad")
    with ShardWriter(tmp_path, "x", 2) as writer:
        writer.write(record, {"scene.png": members["scene.png"][:50]})
        writer.write(text_record("text-0"), {})
        writer.write(text_record("text-1"), {})
        writer.write(text_record("text-2"), {})
        writer.write(text_record("text-3"), {})
    cut = writer.paths[1]
    cut.write_bytes(cut.read_bytes()[:700])
    assert main(["validate", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert "3 shards, 2 good samples, 2 errors" in told.out
    assert "record 'image-bad': 'scene.png': expected an image" in told.err
    assert f"{cut}: expected a complete tar file" in told.err
    assert main(["index", str(tmp_path)]) == 2


@pytest.mark.parametrize("command", ["validate", "index", "inspect"])
def test_no_shards(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, f"{tmp_path}/none-*.tar"]) == 2
    assert "found none" in capsys.readouterr().err
