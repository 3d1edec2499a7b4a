"""Sound, speech and video of frozen experts: equal to what the experts give when they are called directly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file

from heads.experts.expert_head import ExpertHead
from heads.experts.files import ExpertError
from heads.generation.sound import SoundHead
from heads.generation.speech import SpeechHead, split_text
from heads.generation.video import VideoHead
from layers.calls import AudioResult, Result, VideoResult
from tests.heads.generation.conftest import Saved
from tests.heads.generation.test_pictures import call
from tests.heads.generation.tiny_experts import save_speecht5, save_vits


def answers(head: Any, *contexts: Any) -> list[Result]:
    results: list[Result] = head.decode(head(None, [0] * len(contexts), contexts), contexts)
    return results


def loaded(directory: Path) -> Any:
    pipeline = getattr(diffusers, directory.name).from_pretrained(directory, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_sound_is_the_pipelines_own(saved: Saved) -> None:
    directory = saved("AudioLDMPipeline")
    head = SoundHead(str(directory), seconds=0.016, num_steps=2)
    long = call("a dog barks " * 9, seed=4)
    one, two = answers(head, call("a dog barks", seed=3), long)
    assert isinstance(one, AudioResult) and one.sample_rate == 8000 and one.waveform.shape == (1, 128)
    (alone,) = answers(head, call("a dog barks", seed=3))
    assert isinstance(alone, AudioResult)
    generator = torch.Generator().manual_seed(3)
    expected = loaded(directory)(
        "a dog barks", audio_length_in_s=0.016, num_inference_steps=2, guidance_scale=2.5, generator=generator
    )
    assert torch.equal(alone.waveform[0], torch.from_numpy(expected.audios[0]))
    assert not one.notes and "did not read the end of the prompt: " in two.notes[0]
    kept = 75  # letters, of which spaces are no tokens
    assert two.notes[0].rstrip("'").split("'")[-1].replace(" ", "") == ("adogbarks" * 9)[kept:]


@pytest.mark.parametrize("name", ["TextToVideoSDPipeline", "AnimateDiffPipeline"])
def test_video_is_the_pipelines_own(name: str, saved: Saved) -> None:
    directory = saved(name)
    head = VideoHead(str(directory), num_frames=2, num_steps=2, fps=5.0, size=(16, 16))
    (film,) = answers(head, call("a dog runs", seed=3, num_frames=3))
    assert isinstance(film, VideoResult) and film.fps == 5.0 and not film.notes
    generator = torch.Generator().manual_seed(3)
    arguments = {"num_frames": 3, "num_inference_steps": 2, "guidance_scale": 7.5, "height": 16, "width": 16}
    frames = loaded(directory)("a dog runs", **arguments, generator=generator, output_type="np").frames[0]
    assert torch.equal(film.frames, torch.from_numpy((frames * 255).round().astype("uint8")).permute(0, 3, 1, 2))


@pytest.fixture(scope="module")
def speecht5(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    model, vocoder, voices = save_speecht5(tmp_path_factory.mktemp("speech") / "speecht5")
    return str(model), str(vocoder), str(voices)


@pytest.fixture(scope="module")
def vits(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_vits(tmp_path_factory.mktemp("speech") / "vits"))


def test_speecht5_speaks_as_by_itself(speecht5: tuple[str, str, str]) -> None:
    directory, vocoder, voices = speecht5
    head = SpeechHead(directory, vocoder, voices, voice="bob", pause=0.001)
    before = torch.random.get_rng_state()
    said, other, both = answers(
        head, call("the fox", seed=3), call("the fox", seed=3, voice=0), call("The fox. the dog?", seed=3)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert isinstance(said, AudioResult) and isinstance(other, AudioResult) and isinstance(both, AudioResult)
    model = transformers.SpeechT5ForTextToSpeech.from_pretrained(directory).eval()
    ids = transformers.SpeechT5Tokenizer.from_pretrained(directory)("the fox", return_tensors="pt").input_ids
    torch.manual_seed(3)
    own = transformers.SpeechT5HifiGan.from_pretrained(vocoder).eval()
    expected = model.generate_speech(ids, load_file(voices)["bob"][None], vocoder=own)
    assert torch.equal(said.waveform[0], expected) and said.sample_rate == 8000
    assert not torch.equal(said.waveform, other.waveform)
    assert both.waveform.shape[1] > said.waveform.shape[1] and both.notes == ("the expert cannot pronounce 'T'",)


def test_vits_speaks_as_by_itself(vits: str) -> None:
    head = SpeechHead(vits, voice=1)
    (said,) = answers(head, call("seven 7", seed=3))
    assert isinstance(said, AudioResult) and said.notes == ("the expert cannot pronounce '7'",)
    model = transformers.VitsModel.from_pretrained(vits).eval()
    torch.manual_seed(3)
    expected = model(**transformers.VitsTokenizer.from_pretrained(vits)("seven 7", return_tensors="pt"), speaker_id=1)
    assert torch.equal(said.waveform, expected.waveform.detach()) and said.sample_rate == 16000


def test_speech_that_does_not_fit_is_refused(speecht5: tuple[str, str, str], vits: str, tmp_path: Path) -> None:
    directory, vocoder, voices = speecht5
    for head, message in (
        (SpeechHead(directory), "type speecht5: expected a vocoder, got none"),
        (SpeechHead(vits, vocoder), "type vits: expected no vocoder"),
        (SpeechHead(vocoder), "expected a model of type speecht5 or vits, got 'speecht5_hifigan'"),
        (SpeechHead(directory, vits, voices), "expected a vocoder of type speecht5_hifigan, got 'vits'"),
        (SpeechHead(str(tmp_path)), "expected the configuration of a model of transformers"),
    ):
        with pytest.raises(ExpertError, match=message):
            answers(head, call("the fox"))
    for head, message in (
        (SpeechHead(directory, vocoder), "SpeechT5 needs voices"),
        (
            SpeechHead(directory, vocoder, voices, voice="eve"),
            "expected one of .'ada', 'bob'. or its number, got 'eve'",
        ),
        (SpeechHead(vits, voice=2), "voice: expected a number from 0 to 1, got 2"),
        (SpeechHead(directory, vocoder, f"{vocoder}/config.json"), "expected safetensors"),
    ):
        with pytest.raises(ValueError, match=message):
            answers(head, call("the fox"))


KINDS = ("sound", "speecht5", "vits", "film")


@pytest.fixture
def made(saved: Saved, speecht5: tuple[str, str, str], vits: str) -> Callable[[str], Any]:
    """A tiny head of each kind."""
    pipelines = {"sound": "AudioLDMPipeline", "film": "TextToVideoSDPipeline"}

    def of(kind: str) -> Any:
        if kind == "speecht5":
            return SpeechHead(speecht5[0], speecht5[1], speecht5[2], pause=0.001)
        if kind == "vits":
            return SpeechHead(vits)
        directory = str(saved(pipelines[kind]))
        if kind == "sound":
            return SoundHead(directory, seconds=0.016, num_steps=1)
        return VideoHead(directory, num_frames=2, num_steps=1, size=(16, 16))

    return of


@pytest.mark.parametrize("kind", KINDS)
def test_sound_speech_and_video_keep_the_contract_of_heads(kind: str, made: Callable[[str], Any]) -> None:
    head = made(kind)
    assert isinstance(head, ExpertHead) and head.links == {"text", "boxes"} and head.num_queries == 0
    assert head.state_dict() == {} and list(head.parameters()) == [] and not head.reads_originals
    term = head.loss(head(None, [0], [call("the fox")]), [{}])
    assert (term.count, float(term.total)) == (0, 0.0) and head.target_processor("anything", []) == {}
    assert head.decode(head(None, [], []), []) == []
    with pytest.raises(ValueError, match="reads no states"):
        head(torch.zeros(1, 8), [1], [call("the fox")])
    with pytest.raises(ValueError, match="needs a prompt"):
        answers(head, call("  "))
    with pytest.raises(ValueError, match="keeps no state"):
        head.prime("anything")
    asked = [call("the fox", seed=3), call("the lazy dog", seed=4)]
    together = answers(head, *asked)
    for context, result in zip(asked, together, strict=True):
        (alone,) = answers(head, context)
        assert type(result) is type(alone) is (VideoResult if kind == "film" else AudioResult)
        assert result.call is context.call
        if isinstance(result, VideoResult) and isinstance(alone, VideoResult):
            assert result.frames.shape == (2, 3, 16, 16) and result.frames.dtype == torch.uint8
            assert (result.frames.int() - alone.frames.int()).abs().max() <= 1
        elif isinstance(result, AudioResult) and isinstance(alone, AudioResult):
            assert result.waveform.ndim == 2 and result.waveform.abs().max() <= 1 and result.sample_rate > 0
            torch.testing.assert_close(result.waveform, alone.waveform, atol=1e-4, rtol=1e-4)
    assert len(head.experts.loaded) == 1


@pytest.mark.parametrize(
    ("kind", "context", "message"),
    [
        ("sound", call("a dog", seconds=0), "'seconds': expected more than 0, got 0"),
        ("sound", call("a dog", num_steps=0.5), "'num_steps': expected a whole number from 1 on, got 0.5"),
        ("sound", call("a dog", guidance=float("inf")), "'guidance': expected a number"),
        ("film", call("a dog", num_frames=0), "'num_frames': expected a whole number from 1 on, got 0"),
        ("film", call("a dog", fps=0), "'fps': expected more than 0, got 0"),
        ("film", call("a dog", height=13), "divisible by 8"),
        ("speecht5", call("?!"), "expected a text that the expert can pronounce, got '[?]!'"),
        ("vits", call("777"), "expected a text that the expert can pronounce, got '777'"),
        ("vits", call("seven", voice=5), "voice: expected a number from 0 to 1, got 5"),
        ("vits", call("seven", seed=-1), "'seed': expected a whole number from 0 on, got -1"),
    ],
)
def test_a_call_that_sound_speech_or_video_cannot_answer_is_refused(
    kind: str, context: Any, message: str, made: Callable[[str], Any]
) -> None:
    with pytest.raises(ValueError, match=message):
        answers(made(kind), context)


def test_long_texts_are_said_in_pieces_and_none_of_it_is_lost() -> None:
    text = "One. Two, three, four and five! " + "six " * 20 + "x" * 30 + " end"
    pieces = list(split_text(text, 20))
    assert pieces[:3] == ["One.", "Two, three,", "four and five!"]
    assert max(map(len, pieces)) <= 20
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")
    assert list(split_text("hello", 300)) == ["hello"]
