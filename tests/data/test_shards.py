from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import webdataset

from data.records import Media, RecordError
from data.shards import Sample, ShardError, ShardWriter, expand, read_samples
from tests.data.conftest import damaged, image_sample, text_record


def _write(directory: Path, count: int = 5, max_samples: int = 2) -> list[Path]:
    with ShardWriter(directory, "scenes", max_samples) as writer:
        for number in range(count):
            writer.write(*image_sample(f"image-{number}"))
    return writer.paths


def _tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_what_is_written_is_read_in_order(tmp_path: Path) -> None:
    paths = _write(tmp_path)
    assert [path.name for path in paths] == ["scenes-000000.tar", "scenes-000001.tar", "scenes-000002.tar"]
    assert list(read_samples(tmp_path)) == [
        Sample(record.key, record, members) for record, members in (image_sample(f"image-{n}") for n in range(5))
    ]


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = _write(tmp_path / "a"), _write(tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_an_interrupted_writer_leaves_complete_shards_only(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path, "scenes", 2) as writer:
        for number in range(3):
            writer.write(*image_sample(f"image-{number}"))
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["scenes-000000.tar"]
    assert len(list(read_samples(tmp_path))) == 2


def test_the_writer_refuses_what_a_reader_would(tmp_path: Path) -> None:
    record, members = image_sample("image-0")
    with ShardWriter(tmp_path, "scenes") as writer:
        with pytest.raises(ShardError, match=r"expected the members \['scene.png'\], got \[\]"):
            writer.write(record, {})
        with pytest.raises(ShardError, match=r"got.*more\.png"):
            writer.write(record, {**members, "more.png": b""})
        with pytest.raises(RecordError, match="media 'scene' file"):
            bad = {"scene": Media("image", "../scene.png", (40, 24))}
            writer.write(damaged(record, media=bad), {"../scene.png": b""})
        with pytest.raises(ShardError, match="at most 100 characters"):
            writer.write(text_record("a" * 99), {})
        writer.write(record, members)
        with pytest.raises(ShardError, match="written before"):
            writer.write(record, members)
    assert [sample.key for sample in read_samples(tmp_path)] == ["image-0"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_shard_cut_short_is_one_clear_error(tmp_path: Path, share: float) -> None:
    data = _write(tmp_path / "whole", 5, 10)[0].read_bytes().rstrip(b"\0")
    cut = tmp_path / "cut.tar"
    for size in (int(len(data) * share), int(len(data) * share) // 512 * 512):
        cut.write_bytes(data[:size])
        with pytest.raises(ShardError, match=r"cut.tar.*cut short"):
            list(read_samples(cut))


@pytest.mark.parametrize("block", range(0, 12))
def test_a_damaged_block_never_loses_samples_silently(tmp_path: Path, block: int) -> None:
    """A block of noise is either in a medium, which its decoder will see, or an error."""
    (path,) = _write(tmp_path / "whole", 3, 10)
    data, noise = path.read_bytes(), bytes(range(1, 129)) * 4
    path.write_bytes(data[: 512 * block] + noise + data[512 * (block + 1) :])
    try:
        samples = list(read_samples(path))
    except (ShardError, RecordError) as error:
        assert path.name in str(error)
    else:
        assert [sample.key for sample in samples] == ["image-0", "image-1", "image-2"]


def test_a_shard_whose_middle_is_lost_is_refused(tmp_path: Path) -> None:
    (path,) = _write(tmp_path / "whole", 5, 10)
    data = path.read_bytes()
    path.write_bytes(data[:512] + data[512 * 3 :])
    with pytest.raises((ShardError, RecordError), match=path.name):
        list(read_samples(path))


def test_webdataset_reads_the_same_samples(tmp_path: Path) -> None:
    paths = [str(path) for path in _write(tmp_path)]
    theirs = list(webdataset.WebDataset(paths, shardshuffle=False))
    assert [item["__key__"] for item in theirs] == [f"image-{n}" for n in range(5)]
    assert [item["scene.png"] for item in theirs] == [s.members["scene.png"] for s in read_samples(tmp_path)]


@pytest.mark.parametrize(
    "name", ["../a.json", "sub/a.json", "/a.json", "a.png", "A.json", "a.b.c.png", "noextension", ".json"]
)
def test_members_that_belong_to_no_record_are_refused(tmp_path: Path, name: str) -> None:
    path = _tar(tmp_path / "x.tar", {"a.json": text_record("a").to_json(), name: b"x"})
    with pytest.raises(ShardError, match=r"KEY\.NAME\.EXT"):
        list(read_samples(path))


def test_a_missing_member_is_named_and_does_not_hide_the_others(tmp_path: Path) -> None:
    record, members = image_sample("image-0")
    path = _tar(
        tmp_path / "x.tar",
        {
            "image-0.json": record.to_json(),
            "image-1.json": record.to_json(),
            "image-1.scene.png": members["scene.png"],
            "orphan.scene.png": b"",
        },
    )
    with pytest.raises(RecordError, match=r"x\.tar: record 'image-0': expected the members \['scene\.png'\]"):
        list(read_samples(path))
    errors: list[str] = []
    samples = list(read_samples(path, lambda shard, key, error: errors.append(str(error))))
    assert [sample.key for sample in samples] == ["image-1"]
    assert len(errors) == 2 and "orphan.json" in errors[1]


def test_what_belongs_to_no_record_costs_nothing_else(tmp_path: Path) -> None:
    data = text_record("a").to_json()
    names = ["a.json", "../b.json", "c.json", "Picture.PNG", "a.x.png", "d.json", "d.json", "e.json"]
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            body = data if name == "a.json" else text_record(name[0]).to_json() if name.endswith("json") else b"x"
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
        link = tarfile.TarInfo("f.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    errors: list[tuple[str, str]] = []
    samples = list(read_samples(path, lambda shard, key, error: errors.append((key, str(error)))))
    assert [sample.key for sample in samples] == ["a", "c", "e"]
    expected = {
        "../b.json": "KEY.NAME.EXT",
        "Picture.PNG": "KEY.NAME.EXT",
        "a": "'a' together",
        "d": "one member 'd.json', got two",
        "f": "expected regular files",
    }
    assert {key: expected[key] in text for key, text in errors} == dict.fromkeys(expected, True)


def test_a_sparse_member_is_not_blown_up(tmp_path: Path) -> None:
    path = _tar(tmp_path / "x.tar", {"a.json": text_record("a").to_json(), "b.json": b""})
    data = bytearray(path.read_bytes())
    start = data.index(b"b.json")
    header = data[start : start + 512]
    header[156:157], header[257:265] = b"S", b"ustar  \0"  # GNU sparse: one hole of 8 GiB
    header[386:398], header[398:410], header[482:483], header[483:495] = (
        b"0" * 11 + b"\0",
        b"0" * 11 + b"\0",
        b"\0",
        b"77777777777\0",
    )
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[start : start + 512] = header
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"regular files, got 'b\.json'"):
        list(read_samples(path))


def test_one_key_in_two_places_is_refused(tmp_path: Path) -> None:
    data = text_record("a").to_json()
    path = _tar(tmp_path / "x.tar", {"a.json": data, "b.json": data, "a.x.png": b""})
    with pytest.raises(ShardError, match="'a' together"):
        list(read_samples(path))


def test_expand(tmp_path: Path) -> None:
    names = [str(path) for path in _write(tmp_path)]
    assert expand(tmp_path) == names
    assert expand(f"{tmp_path}/scenes-*.tar") == names
    assert expand(f"{tmp_path}/scenes-{{000000..000001}}.tar") == names[:2]
    assert expand([names[2], tmp_path, names[0]]) == names
    with pytest.raises(ShardError, match="found none"):
        expand(f"{tmp_path}/other-*.tar")


def test_commands_never_run(tmp_path: Path) -> None:
    for spec in (f"pipe:touch {tmp_path}/ran", f" PIPE:touch {tmp_path}/ran"):
        with pytest.raises(ShardError, match="commands never run"):
            expand(spec)
        with pytest.raises(ShardError, match="commands never run"):
            list(read_samples([spec]))
    assert not (tmp_path / "ran").exists()
