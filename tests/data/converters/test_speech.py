"""Speech with transcripts, translations, instructions and trials."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import soundfile

from tests.data.converters.conftest import Convert, audio_bytes, report, write
from tests.data.converters.test_vision import texts


def test_librispeech(tmp_path: Path, convert: Convert) -> None:
    chapter = tmp_path / "dev-clean" / "84" / "121123"
    write(chapter / "84-121123.trans.txt", "84-121123-0000 GO DO YOU HEAR\n84-121123-0001 BUT\n84-121123-0002 \n")
    write(chapter / "84-121123-0000.flac", audio_bytes(1600))
    write(chapter / "84-121123-0002.flac", audio_bytes(1600))
    (sample,) = convert("librispeech", tmp_path / "dev-clean", "--split", "val", status=1)
    assert texts(sample) == ["Transcribe the speech.", "go do you hear"]
    assert sample.record.meta["speaker"] == "84" and sample.record.split == "val"
    assert sample.record.media["audio"].size == (1600,) and sample.record.media["audio"].sample_rate == 16_000
    assert set(report(tmp_path / "out")["skipped"]) == {"transcript without audio", "utterance without a transcript"}
    (kept,) = convert("librispeech", tmp_path / "dev-clean", "--keep-case", status=1, out=tmp_path / "kept")
    assert texts(kept)[1] == "GO DO YOU HEAR"


def test_common_voice_and_covost(tmp_path: Path, convert: Convert) -> None:
    write(tmp_path / "clips" / "a.wav", audio_bytes(4800, 48_000, "WAV"))
    header = "client_id\tpath\tsentence\tup_votes\tage\tgender\n"
    common = write(tmp_path / "validated.tsv", header + 'c1\ta.wav\tShe said "no".\t2\ttwenties\t\n')
    (sample,) = convert("voice-tsv", common, "--language", "en")
    assert texts(sample)[1] == 'She said "no".' and sample.record.media["audio"].sample_rate == 48_000
    assert sample.record.meta == {
        "language": "en",
        "transcript": 'She said "no".',
        "speaker": "c1",
        "age": "twenties",
    }
    assert report(tmp_path / "out")["unknown_fields"] == {"up_votes": 1}
    covost = "path\tsentence\ttranslation\tclient_id\na.wav\tGood day.\tGuten Tag.\tc1\nb.wav\tBye.\tTschüss.\tc2\n"
    source = write(tmp_path / "covost_v2.en_de.dev.tsv", covost)
    arguments = ("--language", "en", "--target-language", "de")
    (translated,) = convert("voice-tsv", source, *arguments, status=1, out=tmp_path / "st")
    assert texts(translated) == ["Translate the speech into de.", "Guten Tag."]
    assert translated.record.meta["transcript"] == "Good day."
    assert convert("voice-tsv", common, *arguments, status=2, out=tmp_path / "none") == []


def test_a_row_with_another_number_of_cells_costs_itself_alone(tmp_path: Path, convert: Convert) -> None:
    for name in ("a.wav", "c.wav"):
        write(tmp_path / "clips" / name, audio_bytes(kind="WAV"))
    source = write(tmp_path / "train.tsv", "path\tsentence\na.wav\tone\nb.wav\ttwo\tthree\n\nc.wav\tfour\n")
    samples = convert("voice-tsv", source, "--language", "en", status=1)
    assert [texts(sample)[1] for sample in samples] == ["one", "four"]
    skipped = report(tmp_path / "out")["skipped"]
    assert skipped == {"row with another number of cells than the header": {"items": 1, "examples": ["line 3"]}}


def test_wavllm(tmp_path: Path, convert: Convert) -> None:
    clip, other = audio_bytes(1000), audio_bytes(700, seed=1)
    write(tmp_path / "pack.zip", b"x" * 10 + clip + other)
    write(tmp_path / "b.flac", other)
    rows = [
        "id\taudio\tn_frames\tprompt\ttgt_text\twith_speech\tstart_frame\tend_frame",
        f"0\tpack.zip:10:{len(clip)}\t111111\tWhat is said?\thello\tTrue\t\t",
        "1\tb.flac\t700\tAnd here?\tbye\tTrue\t100\t400",
        "2\t\t0\tSay hi.\thi\tFalse\t\t",
        "3\tb.flac\t700\t\tspoken\tTrue\t\t",
        f"4\tpack.zip:10:{10**6}\t1\tWhat?\tno\tTrue\t\t",
        "5\tb.flac\t700\tWhat?\t\tTrue\t\t",
    ]
    samples = convert("wavllm", write(tmp_path / "test.tsv", "\n".join(rows) + "\n"), status=1)
    assert [sample.record.meta["id"] for sample in samples] == ["0", "1", "2", "3"]
    assert samples[0].members["audio.flac"] == clip and samples[0].record.meta["n_frames"] == "111111"
    assert samples[1].record.media["audio"].size == (300,)
    cut, _ = soundfile.read(io.BytesIO(samples[1].members["audio.flac"]), dtype="int16")
    whole, _ = soundfile.read(io.BytesIO(other), dtype="int16")
    assert (cut == whole[100:400]).all()
    assert not samples[2].record.media
    assert [part.type for part in samples[3].record.messages[0].content] == ["audio"]
    assert set(report(tmp_path / "out")["skipped"]) == {"stretch beyond the end of its file", "row without a target"}


def test_voxceleb(tmp_path: Path, convert: Convert) -> None:
    for name in ("id1/x/1.wav", "id1/y/2.wav", "id2/z/1.wav"):
        write(tmp_path / "wav" / name, audio_bytes(kind="WAV", seed=len(name)))
    trials = write(
        tmp_path / "trials.txt", "1 id1/x/1.wav id1/y/2.wav\n0 id1/x/1.wav id2/z/1.wav\n0 id1/x/1.wav id3/q.wav\n"
    )
    samples = convert("voxceleb", trials, "--media-root", str(tmp_path / "wav"), status=1)
    assert [texts(sample)[1] for sample in samples] == ["yes", "no"]
    assert [part.type for part in samples[0].record.messages[0].content] == ["audio", "audio", "text"]
    broken = write(tmp_path / "broken.txt", "2 a b\n")
    assert convert("voxceleb", broken, "--media-root", str(tmp_path), status=2, out=tmp_path / "none") == []


@pytest.mark.parametrize("data", [b"", b"RIFF", audio_bytes(0)], ids=["empty", "cut", "no samples"])
def test_audio_that_does_not_open_is_counted(tmp_path: Path, convert: Convert, data: bytes) -> None:
    write(tmp_path / "wav" / "a.wav", data)
    trials = write(tmp_path / "trials.txt", "1 a.wav a.wav\n")
    assert convert("voxceleb", trials, "--media-root", str(tmp_path / "wav"), status=1) == []
    assert sum(item["items"] for item in report(tmp_path / "out")["skipped"].values()) == 1
