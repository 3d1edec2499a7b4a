from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
import soundfile

pytest.importorskip("espeakng_loader")
pytest.importorskip("sklearn")

from data.quickstart import speech
from data.quickstart.synthesis.espeak import SAMPLE_RATE, SynthesisError, Voice, resample, restart, speak, trim
from data.quickstart.synthesis.utterances import DIGITS, OBJECTS, PLACES, bucket, fact, plain, utterance
from data.quickstart.synthesis.variants import another_speaker


def test_no_voice_is_shared():
    sets = [{name for part in registers.values() for name in part} for registers in speech.VARIANTS.values()]
    assert len(set.union(*sets)) == sum(map(len, sets))
    stems = [{name.rstrip("0123456789") for name in part if len(name) > 2} for part in sets]
    assert len(set.union(*stems)) == sum(map(len, stems))


def test_speaking_gives_clean_audio_and_unknown_voices_are_refused():
    slow, fast = (speak("four seven one", Voice("en-us", "f3", rate)) for rate in (130, 260))
    assert slow.dtype == np.float32 and np.isclose(np.abs(slow).max(), 0.7, atol=1e-3)
    assert len(slow) > 1.3 * len(fast) and 0.3 < len(fast) / SAMPLE_RATE < 2
    assert not np.array_equal(fast, speak("four seven one", Voice("en-us", "m3", 260)))
    for name in (Voice("en-us", "nobody"), Voice("xx-nowhere", "f3")):
        with pytest.raises(SynthesisError, match="does not know the voice"):
            speak("hello", name)


def test_another_speaker_keeps_what_is_not_drawn():
    variant = "language variant\nname somebody\npitch 80 120\nformant 1 90 100 100 40\nformant 4 97 85 100\nflutter 5\n"
    made = [line.split() for line in another_speaker(variant, 7).splitlines()]
    values = {" ".join(words[:2]) if words[0] == "formant" else words[0]: words for words in made}
    assert len(values) == len(made) == 8  # formants 2 and 3 are drawn around espeak-ng's own
    assert values["formant 4"] == "formant 4 97 85 100".split() and values["flutter"] == ["flutter", "5"]
    assert 72 <= int(values["pitch"][1]) <= 88 and int(values["pitch"][2]) > int(values["pitch"][1])
    assert 90 * 0.81 <= int(values["formant 1"][2]) <= 90 * 1.19 and values["formant 1"][5] == "40"
    assert another_speaker(variant, 7) == another_speaker(variant, 7) != another_speaker(variant, 8)


def test_a_speaker_of_our_own_sounds_different_and_the_same_again():
    clips = []
    for speaker in (0, 1, 2, 1):
        restart()
        clips.append(speak("four seven one", Voice("en-us", "m3", speaker=speaker)))
    assert np.array_equal(clips[1], clips[3])
    assert not np.array_equal(clips[0], clips[1]) and not np.array_equal(clips[1], clips[2])
    with pytest.raises(SynthesisError, match="does not know the voice"):
        speak("hello", Voice("en-us", "nobody", speaker=1))


def test_only_training_hears_speakers_of_our_own():
    rng = np.random.default_rng(0)
    voices = {split: [speech.random_voice("en", split, rng) for _ in range(100)] for split in speech.VARIANTS}
    assert 40 < sum(voice.speaker > 0 for voice in voices["train"]) < 80
    assert not any(voice.speaker for split in ("val", "test") for voice in voices[split])


def test_after_a_restart_nothing_spoken_before_is_heard():
    voice, clips = Voice("en-us", "f3"), []
    for before in ("one", "a much longer sentence than that"):
        speak(before, Voice("en-us", "m3"))
        restart()
        clips.append(speak("four seven one", voice))
    assert np.array_equal(*clips)


def test_resampling_keeps_a_tone_and_removes_what_does_not_fit():
    time = np.arange(22050) / 22050
    low = resample(np.sin(2 * np.pi * 440 * time).astype(np.float32), 22050)
    assert len(low) == SAMPLE_RATE
    expected = np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    assert np.abs(low - expected)[200:-200].max() < 0.01
    high = resample(np.sin(2 * np.pi * 9900 * time).astype(np.float32), 22050)
    assert np.abs(high)[200:-200].max() < 0.05


def test_trimming_cuts_both_ends():
    waveform = np.concatenate([np.zeros(4000), np.ones(100), np.zeros(9000)]).astype(np.float32)
    assert len(trim(waveform, margin=10)) == 120


def test_german_agrees_with_its_nouns():
    articles = {"den": "m", "die": "f", "das": "n"}
    genders = {german.split()[1]: articles[german.split()[0]] for _, german in OBJECTS}
    assert genders["ball"] == genders["schlüssel"] == genders["apfel"] == "m"
    assert genders["tasse"] == genders["lampe"] == "f" and genders["buch"] == genders["brot"] == "n"
    assert all(german.split()[-2] in articles for _, german in PLACES)
    assert dict(PLACES)["next to the car"] == "neben das auto" and dict(PLACES)["behind the tree"] == "hinter den baum"


def test_utterances_stay_in_their_split():
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for language in ("en", "de"):
            for kind in ("digits", "command"):
                said = utterance(kind, language, split, rng)
                assert bucket(said.translation or said.text) == split
                assert said.text == plain(said.text) and (said.translation is not None) == (language == "en")
                if kind == "digits":
                    assert set(said.text.split()) <= set(DIGITS[language]) and 3 <= len(said.text.split()) <= 5


def test_facts_contain_their_answer():
    rng = np.random.default_rng(0)
    for number in range(40):
        for kind in speech.FACT_KINDS:
            said = fact(kind, number, rng, distractor=number % 2 == 0)
            answer = DIGITS["en"][int(said.answer)] if kind == "number" else said.answer
            noun = said.question.split()[2] if kind == "number" else said.question.rstrip("?").split()[-1]
            pattern = f"{answer} {noun}" if kind == "number" else f"the {noun} is {answer}"
            assert pattern in said.statement and said.transcript == plain(said.transcript)


@pytest.mark.parametrize("name", ["asr", "translation", "speakers", "spoken_facts", "spoken_image_qa"])
def test_benchmarks_over_speech(name):
    kinds: Counter[str] = Counter()
    voices = {voice for part in speech.VARIANTS["test"].values() for voice in part}
    for index in range(16):
        record, members = getattr(speech, name)("test", index, 0)
        waveform, rate = soundfile.read(io.BytesIO(members["audio.flac"]))
        assert rate == SAMPLE_RATE and (len(waveform),) == record.media["audio"].size
        assert len(waveform) <= speech.LONGEST and np.abs(waveform).max() < 1
        assert set(record.meta["voices"]) <= voices and len(record.messages) == 2
        assert record.messages[1].content[0].text == record.meta["answer"]
        kinds[record.meta["answer"] if name == "speakers" else record.meta["question_type"]] += 1
        if name == "speakers":
            assert len(record.meta["voices"]) == {"one": 1, "two": 2}[record.meta["answer"]]
        if name == "asr":
            assert record.meta["answer"] == record.meta["transcript"]
    assert len(kinds) >= 2
    if name == "speakers":
        assert kinds == {"one": 8, "two": 8}


def test_a_spoken_training_dialogue_transcribes_its_clip():
    for index in range(8):
        record, _ = speech.speech("train", index, 0)
        answers = [message.content[0].text for message in record.messages[1::2]]
        assert record.meta["transcript"] in answers
        assert sum(part.type == "audio" for message in record.messages for part in message.content) == 1


def test_training_clips_say_which_voices_speak():
    seen: set[str] = set()
    for index in range(60):
        record, _ = speech.speech("train", index, 0)
        replies = {message.content[0].text for message in record.messages if message.role == "assistant"}
        low = tuple(sorted({voice in speech.VARIANTS["train"]["low"] for voice in record.meta["voices"]}))
        answer = {(True,): "low", (False,): "high", (False, True): "both"}[low]
        asked = {answer} if "voices" in record.meta["question_types"] else set()
        assert replies & {"low", "high", "both"} == asked
        seen |= asked
    assert seen == {"low", "high", "both"}
