"""The command: help of every format, refusals, limits, shards."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.__main__ import main
from data.commands.convert import format_parser
from data.converters import FORMATS
from data.drafts import Draft, Origin
from data.media import MAX_PIXELS, MediaError
from data.shards import expand
from tests.data.converters.conftest import Convert, audio_bytes, write


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["convert", name, "--help"])
    assert ended.value.code == 0
    assert f"convert {name}" in capsys.readouterr().out
    helps = [action.help for action in format_parser(name)._actions]
    assert all(helps)


def test_the_help_lists_the_formats(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    told = capsys.readouterr().out
    assert all(name in told and words in told for name, words in FORMATS.items())


def test_shards_limits_and_an_occupied_folder(tmp_path: Path, convert: Convert, capsys) -> None:
    write(tmp_path / "a.wav", audio_bytes(kind="WAV"))
    trials = write(tmp_path / "trials.txt", "1 a.wav a.wav\n" * 7)
    arguments = ("--media-root", str(tmp_path), "--samples", "2", "--prefix", "vox", "--limit", "5")
    samples = convert("voxceleb", trials, *arguments)
    assert [sample.key for sample in samples] == [f"vox-{i:08d}" for i in range(5)]
    assert len(expand(str(tmp_path / "out" / "train"))) == 3
    assert convert("voxceleb", trials, *arguments, status=2) != []
    assert "expected no shards 'vox-*.tar', got 3" in capsys.readouterr().err
    assert convert("voxceleb", tmp_path / "nothing", *arguments, status=2, out=tmp_path / "none") == []
    broken = write(tmp_path / "broken.txt", "1 a.wav a.wav\n" * 3 + "2 a b\n")
    assert len(convert("voxceleb", broken, *arguments, status=2, out=tmp_path / "half")) == 2
    assert [path.name for path in (tmp_path / "half").rglob("*.*")] == ["vox-000000.tar"]


def test_a_picture_that_declares_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    import struct
    import zlib

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    made = Draft("a", "t", Origin("s", "CC0-1.0", "train"))
    with pytest.raises(MediaError, match=f"at most {MAX_PIXELS:,} pixels|does not open"):
        made.add_image(bomb)
