"""Prompts of any length: windows equal the pipeline's own reading, and nothing is cut in silence."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from heads.generation.images import TextToImageHead
from heads.generation.prompts import encoded_prompt, num_windows, prompt_arguments, unread
from tests.heads.generation.conftest import Saved
from tests.heads.generation.test_pictures import call, images

LONG = "a very big dog " * 10  # 11 letters, one token each: 110 tokens, read in windows of 75


@pytest.fixture(scope="module")
def pipeline(saved: Saved) -> Any:
    return diffusers.StableDiffusionPipeline.from_pretrained(saved("StableDiffusionPipeline"))


def test_a_prompt_of_one_window_is_read_as_the_pipeline_reads_it(pipeline: Any) -> None:
    told, untold = encoded_prompt(pipeline, "a red 7")
    expected = pipeline.encode_prompt("a red 7", "cpu", 1, True)
    assert torch.equal(told, expected[0][0]) and torch.equal(untold, expected[1][0])
    assert prompt_arguments(pipeline, ["a red 7"], "dull") == {"prompt": ["a red 7"], "negative_prompt": ["dull"]}
    assert num_windows(pipeline, "a red 7") == 1 and num_windows(pipeline, "") == 1


def test_long_prompts_are_read_in_windows_that_end_between_words(pipeline: Any) -> None:
    assert num_windows(pipeline, LONG) == 2 and unread(pipeline, LONG) == ""
    arguments = prompt_arguments(pipeline, [LONG], "dull")
    first, second = "a very big dog " * 6 + "a very big", "dog " + "a very big dog " * 3
    expected = [pipeline.encode_prompt(words, "cpu", 1, True)[0] for words in (first, second)]
    torch.testing.assert_close(arguments["prompt_embeds"], torch.cat(expected, dim=1))
    against = [pipeline.encode_prompt(words, "cpu", 1, True)[0] for words in ("dull", "")]
    torch.testing.assert_close(arguments["negative_prompt_embeds"], torch.cat(against, dim=1))


def test_a_word_longer_than_a_window_is_cut_and_a_long_negative_prompt_is_read(pipeline: Any) -> None:
    assert num_windows(pipeline, "x" * 200) == 3
    arguments = prompt_arguments(pipeline, ["a dog"], LONG)
    assert arguments["prompt_embeds"].shape == arguments["negative_prompt_embeds"].shape == (1, 154, 16)


def test_long_and_short_prompts_are_drawn_together_as_alone(saved: Saved) -> None:
    head = TextToImageHead(str(saved("StableDiffusionPipeline")), num_steps=2)
    asked = [call(LONG, seed=1), call("a dog", seed=2), call(LONG[:100], seed=3), call("x" * 10_000, seed=4)]
    for context, image in zip(asked, images(head, *asked), strict=True):
        (alone,) = images(head, context)
        assert (alone.int() - image.int()).abs().max() <= 1
    assert not torch.equal(*images(head, call(LONG), call(LONG[:80])))
