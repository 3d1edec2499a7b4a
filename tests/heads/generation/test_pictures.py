"""Images of frozen pipelines: equal to the pipelines called directly, whatever is asked beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from heads.experts.expert_head import ExpertHead
from heads.generation.editing import InpaintHead, InstructEditHead
from heads.generation.images import TextToImageHead
from heads.generation.layout import LayoutImageHead, phrases_of
from layers.calls import BoxesResult, Call, HeadContext, ImageResult, MaskResult, MediaFeatures, Region, ResultRef
from layers.geometry import GeometricTransform
from layers.layout import ItemLayout
from tests.heads.generation.conftest import Saved
from tests.heads.generation.tiny_experts import SOURCE

BOX = (0.25, 0.25, 0.75, 0.5)
STEPS = {"num_steps": 2}


def shown(image: Tensor = SOURCE) -> MediaFeatures:
    size = (image.shape[2], image.shape[1])
    layout = ItemLayout((1, 1), size, GeometricTransform.letterbox(size, (32, 32)))
    return MediaFeatures("image", torch.zeros(1, 4), layout, {}, lambda: image)


def call(prompt: str, *groundings: Any, media: list[MediaFeatures] | None = None, **parameters: float) -> HeadContext:
    return HeadContext(Call("draw", prompt, groundings), media or [], [], parameters)


def images(head: ExpertHead, *contexts: HeadContext) -> list[Tensor]:
    results = head.decode(head(None, [0] * len(contexts), contexts), contexts)
    assert [result.call for result in results] == [context.call for context in contexts]
    return [result.image for result in results if isinstance(result, ImageResult)]


def direct(directory: Path, seed: int, **arguments: Any) -> Tensor:
    """What diffusers itself makes of a directory, as it writes it to a file."""
    name = directory.name
    pipeline = getattr(diffusers, name).from_pretrained(directory, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    (image,) = pipeline(num_inference_steps=2, generator=torch.Generator().manual_seed(seed), **arguments).images
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_text_to_image_is_the_pipelines_own(saved: Saved) -> None:
    directory = saved("StableDiffusionPipeline")
    head = TextToImageHead(str(directory), **STEPS, negative_prompt="dull")
    drawn = images(
        head,
        call("a red 7", seed=3),
        call("a blue 4", seed=4, guidance=2.0),
        call("a dog", seed=3, width=24, height=16),
    )
    for image, words, seed, guidance, width in zip(
        drawn, ("a red 7", "a blue 4", "a dog"), (3, 4, 3), (7.5, 2.0, 7.5), (16, 16, 24), strict=True
    ):
        arguments = {"negative_prompt": "dull", "guidance_scale": guidance, "width": width, "height": 16}
        assert torch.equal(image, direct(directory, seed, prompt=words, **arguments))
    assert not torch.equal(drawn[0], drawn[1])


def test_what_is_asked_beside_a_drawing_does_not_change_it(saved: Saved) -> None:
    head = TextToImageHead(str(saved("StableDiffusionPipeline")), **STEPS, batch_size=2)
    asked = [call(words, seed=seed) for seed, words in enumerate(("a red 7", "a blue 4", "a dog"))]
    for context, image in zip(asked, images(head, *asked), strict=True):
        (alone,) = images(head, context)
        assert (alone.int() - image.int()).abs().max() <= 1


def test_layout_to_image_is_the_pipelines_own(saved: Saved) -> None:
    directory = saved("StableDiffusionGLIGENPipeline")
    head = LayoutImageHead(str(directory), **STEPS)
    other = (0.0, 0.5, 0.5, 1.0)
    image, elsewhere = images(
        head, call("a street; a car; a dog", Region(BOX), Region(other), seed=3), call("a car", Region(other), seed=3)
    )
    expected = direct(
        directory,
        3,
        prompt="a street, a car, a dog",
        gligen_phrases=["a car", "a dog"],
        gligen_boxes=[list(BOX), list(other)],
        gligen_scheduled_sampling_beta=1.0,
    )
    assert torch.equal(image, expected) and not torch.equal(image, elsewhere)


def test_regions_on_an_image_keep_their_place_in_a_layout(saved: Saved) -> None:
    """An image of 16 x 8 in a frame of 32 x 32: its rows are the frame's from 8 to 24."""
    head = LayoutImageHead(str(saved("StableDiffusionGLIGENPipeline")), **STEPS)
    context = call("a car", Region((0.0, 0.25, 0.5, 0.5)), media=[shown(SOURCE[:, :8])])
    (request,) = head(None, [0], [context])
    assert request.own["boxes"] == [[0.0, 0.0, 0.5, 0.5]]
    boxes = BoxesResult(Call("ground", "it"), ((4.0, 2.0, 8.0, 8.0),), (1.0,))
    context = HeadContext(Call("draw", "a car", (ResultRef(0),)), [shown(SOURCE[:, :8])], [boxes])
    (request,) = head(None, [0], [context])
    assert request.own["boxes"] == [[0.25, 0.25, 0.5, 1.0]]


def test_an_instruction_edits_as_the_pipeline_does(saved: Saved) -> None:
    directory = saved("StableDiffusionInstructPix2PixPipeline")
    head = InstructEditHead(str(directory), **STEPS, image_guidance=1.2)
    whole, part = images(
        head,
        call("make it green", media=[shown()], seed=3),
        call("make it green", Region(BOX), media=[shown()], seed=3),
    )
    expected = direct(directory, 3, prompt="make it green", image=SOURCE[None].float() / 255, image_guidance_scale=1.2)
    assert torch.equal(whole, expected)
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[4:8, 4:12] = True
    assert torch.equal(part, torch.where(inside, whole, SOURCE)) and not torch.equal(whole, SOURCE)


def test_inpainting_fills_as_the_pipeline_does_and_leaves_the_rest(saved: Saved) -> None:
    """The mask is a region, or an earlier result; two in one batch."""
    directory = saved("StableDiffusionInpaintPipeline")
    head = InpaintHead(str(directory), **STEPS)
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[4:8, 4:12] = True
    earlier = [MaskResult(Call("seg", "it"), mask)]
    by_region = call("a dog", Region(BOX), media=[shown()], seed=3)
    by_result = HeadContext(Call("draw", "a dog", (ResultRef(0),)), [shown()], earlier, {"seed": 3})
    one, two = images(head, by_region, by_result)
    expected = direct(
        directory,
        3,
        prompt="a dog",
        image=SOURCE[None].float() / 255,
        mask_image=mask[None, None].float(),
        height=16,
        width=16,
    )
    assert torch.equal(one[:, ~mask], SOURCE[:, ~mask])
    assert (one.int() - two.int()).abs().max() <= 1
    (alone,) = images(head, by_region)
    assert torch.equal(alone, torch.where(mask, expected, SOURCE))


def test_an_edit_takes_the_result_it_refers_to_and_answers_at_the_sources_size(saved: Saved) -> None:
    head = InstructEditHead(str(saved("StableDiffusionInstructPix2PixPipeline")), **STEPS)
    drawn = ImageResult(Call("draw", "it"), SOURCE[:, :10].repeat(1, 1, 2))
    context = HeadContext(Call("edit", "make it green", (ResultRef(0),)), [shown()], [drawn], {})
    (image,) = images(head, context)
    assert image.shape == (3, 10, 32)
    original = MediaFeatures("image", torch.zeros(1, 4), shown().layout, {"pixel_values": torch.zeros(3, 32, 32)})
    assert images(head, call("make it green", media=[original]))[0].shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("kind", "context", "message"),
    [
        (TextToImageHead, call(" "), "needs a prompt"),
        (TextToImageHead, call("a dog", num_steps=0), "'num_steps': expected a whole number from 1 on, got 0"),
        (TextToImageHead, call("a dog", guidance=float("nan")), "'guidance': expected a number"),
        (TextToImageHead, call("a dog", width=13, height=16), "divisible by 8"),
        (TextToImageHead, call("a dog", width=16), "expected width and height, got width alone"),
        (LayoutImageHead, call("a dog"), "expected 1 to 30 regions, got 0"),
        (LayoutImageHead, call("a; b; c; d", Region(BOX), Region(BOX)), "1, 2 or 3 phrases between semicolons, got 4"),
        (LayoutImageHead, call("a dog; " + "b" * 80, Region(BOX), Region(BOX)), "at most 77 tokens, got 82"),
        (InstructEditHead, call("make it green"), "needs an image"),
        (InpaintHead, call("a dog", media=[shown()]), "expected a region, or an earlier mask or box"),
    ],
)
def test_a_call_that_does_not_fit_is_refused(kind: Any, context: HeadContext, message: str, saved: Saved) -> None:
    names = {
        TextToImageHead: "StableDiffusionPipeline",
        LayoutImageHead: "StableDiffusionGLIGENPipeline",
        InstructEditHead: "StableDiffusionInstructPix2PixPipeline",
        InpaintHead: "StableDiffusionInpaintPipeline",
    }
    with pytest.raises(ValueError, match=message):
        images(kind(str(saved(names[kind]))), context)


def test_phrases_go_to_boxes() -> None:
    assert phrases_of("a car", 2) == ("a car", ["a car", "a car"])
    assert phrases_of("a car; a dog", 2) == ("a car, a dog", ["a car", "a dog"])
    assert phrases_of("a street; a car; a dog", 2) == ("a street, a car, a dog", ["a car", "a dog"])


def test_states_are_refused_and_nothing_is_learned(saved: Saved) -> None:
    head = TextToImageHead(str(saved("StableDiffusionPipeline")))
    with pytest.raises(ValueError, match="reads no states"):
        head(torch.zeros(1, 8), [1], [call("a dog")])
    assert head.target_processor(SOURCE, []) == {} and head.state_dict() == {}
    assert head.decode(head(None, [], []), []) == []
