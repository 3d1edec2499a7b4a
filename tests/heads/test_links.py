"""The four links as an argument of heads: what crosses, with and without states, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from heads.boxes import BoxHead, BoxSetHead
from heads.links import LinkReader, PromptEncoder, checked_boxes
from heads.masks import MaskHead
from layers.calls import BoxesResult, Call, HeadContext, MediaFeatures, Region
from layers.geometry import Box, GeometricTransform
from layers.head import Head, Link
from layers.layout import ItemLayout

STATE, FEATURE = 24, 16
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


def context(prompt: str = "red 7", *boxes: Box, seed: int = 0) -> HeadContext:
    torch.manual_seed(seed)
    layout = ItemLayout((4, 4), (32, 24), GeometricTransform.letterbox((32, 24), (16, 16)))
    pixels = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    media = MediaFeatures("image", torch.randn(16, FEATURE), layout, {"pixel_values": pixels})
    return HeadContext(Call("seg", prompt, tuple(map(Region, boxes))), [media])


HEADS: dict[str, Any] = {
    "box": lambda **link: BoxHead(STATE, FEATURE, width=16, **link),
    "set": lambda **link: BoxSetHead(STATE, FEATURE, width=16, num_layers=1, **link),
    "mask": lambda **link: MaskHead(STATE, FEATURE, width=16, channels=(8, 8, 4), **link),
}


def changes(head: Head, states: torch.Tensor | None, count: int, one: HeadContext, other: HeadContext) -> bool:
    """Whether the head answers the two calls differently."""
    head.eval()
    with torch.no_grad():
        made = [head(states, [count], [own]) for own in (one, other)]
    flat = [item if isinstance(item, torch.Tensor) else _tensor(item) for item in made]
    return not torch.allclose(flat[0], flat[1], atol=1e-5)


def _tensor(predictions: Any) -> torch.Tensor:
    if isinstance(predictions, list):
        return predictions[0]
    boxes = predictions.boxes_cxcywh
    return boxes[-1][0] if isinstance(boxes, list) else boxes


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("link", ["text", "boxes"])
def test_words_and_regions_cross_alone(name: str, link: Link) -> None:
    torch.manual_seed(1)
    head = HEADS[name](link=link)
    assert head.links == {link}
    assert changes(head, None, 0, context("red 7"), context("blue 4"))
    assert not changes(head, None, 0, context("red 7"), context("red 7"))
    reads_regions = changes(head, None, 0, context("red 7", (0, 0, 0.4, 0.5)), context("red 7", (0.5, 0.5, 1, 1)))
    assert reads_regions == (link == "boxes")


@pytest.mark.parametrize("name", HEADS)
def test_queries_belong_to_the_head_and_states_pass_unchanged(name: str) -> None:
    head = HEADS[name](link="queries", num_queries=3)
    assert head.num_queries == 3 and head.queries is not None and head.queries.shape == (3, STATE)
    assert head.links == {"hidden", "queries"}
    states = torch.randn(3, STATE)
    vectors, counts = head.crossed(states, [3], [context()])
    assert vectors is states and counts == [3]
    assert HEADS[name]().queries is None and HEADS[name]().links == {"hidden", "queries"}


def test_a_reader_gives_a_vector_per_word_and_region_and_the_summaries_behind_them() -> None:
    torch.manual_seed(0)
    reader = LinkReader("boxes", STATE, num_states=2)
    contexts = [context("the red 7!", WHOLE, (0.1, 0.2, 0.3, 0.4)), context(""), context("blue", WHOLE)]
    vectors, counts = reader(None, [0, 0, 0], contexts, "Head")
    assert counts == [4 + 2 + 2, 1 + 0 + 2, 1 + 1 + 2] and vectors.shape == (sum(counts), STATE)
    for place, own in enumerate(vectors.split(counts)):
        alone, _ = reader(None, [0], [contexts[place]], "Head")
        torch.testing.assert_close(own, alone, atol=1e-5, rtol=1e-4)
    vectors.sum().backward()
    assert all(parameter.grad is not None for parameter in reader.parameters())
    assert reader(None, [], [], "Head")[0].shape == (0, STATE)


def test_a_prompt_of_ten_thousand_characters_is_read_to_its_end() -> None:
    torch.manual_seed(0)
    encoder = PromptEncoder(16).eval()
    with torch.no_grad():
        (first,), (second,) = encoder(["red 7 " * 1700 + "blue"]), encoder(["red 7 " * 1700 + "green"])
    assert len(first) == 3401 and not torch.allclose(first.mean(0), second.mean(0), atol=1e-6)


def test_the_order_of_words_counts_and_letter_case_does_not() -> None:
    torch.manual_seed(0)
    encoder = PromptEncoder(16).eval()
    with torch.no_grad():
        first, second, third = encoder(["dog bites man", "man bites dog", "Dog BITES man"])
    assert not torch.allclose(first.mean(0), second.mean(0), atol=1e-4)
    torch.testing.assert_close(first, third)


@pytest.mark.parametrize(
    "box", [(0.6, 0.1, 0.4, 0.5), (0.1, 0.6, 0.4, 0.5), (-0.1, 0, 0.5, 0.5), (0, 0, 1.2, 1), (0, 0, float("nan"), 1)]
)
def test_a_region_that_is_none_is_refused_by_whoever_reads_it(box: Box) -> None:
    with pytest.raises(ValueError, match="region 1 of task 'seg': expected 0 <= x1 <= x2 <= 1"):
        checked_boxes(context("red", WHOLE, box))
    with pytest.raises(ValueError, match="region 0"):
        HEADS["mask"](link="boxes")(None, [0], [context("red", box)])
    head = HEADS["box"]().eval()  # a head that reads a state has no use for it
    with torch.no_grad():
        (result,) = head.decode(head(torch.randn(1, STATE), [1], [context("red", box)]), [context("red", box)])
    assert isinstance(result, BoxesResult)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match="link 'queries' does not go with num_queries=0"):
        HEADS["mask"](link="queries")
    with pytest.raises(ValueError, match="link 'text' does not go with num_queries=2"):
        HEADS["mask"](link="text", num_queries=2)
    with pytest.raises(ValueError, match="text_encoder goes with link 'text' or 'boxes'"):
        HEADS["mask"](text_encoder="somewhere")
    with pytest.raises(ValueError, match="link: expected one of"):
        HEADS["mask"](link="telepathy")
    with pytest.raises(ValueError, match="MaskHead reads hidden states"):
        HEADS["mask"](link="queries", num_queries=2)(None, [2], [context()])


def test_a_pretrained_text_encoder_reads_the_words_and_stays_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "blue", "7", "4", "the"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=8, **sizes)
    own = BertModel(config)
    own.save_pretrained(tmp_path)
    head = MaskHead(STATE, FEATURE, width=16, channels=(8, 8, 4), link="text", text_encoder=str(tmp_path)).train()
    assert head.bases == {"crossing.prompts.model.": str(tmp_path)}
    contexts = [context("red 7"), context("the blue 4")]
    read = head.crossing.prompts([item.call.prompt for item in contexts])
    with torch.no_grad():
        ids = torch.tensor([[2, 4, 6, 3]])
        wanted = head.crossing.prompts.projection(own.eval()(ids).last_hidden_state[0])
    torch.testing.assert_close(read[0], wanted, atol=1e-5, rtol=1e-4)
    assert [len(item) for item in read] == [4, 5]
    with pytest.raises(ValueError, match="a prompt has 22 tokens, its text encoder reads at most 8"):
        head.crossing.prompts(["red 7", "the blue 4 " * 6 + "red 7"])
    head.loss(head(None, [0, 0], contexts), [{"mask": torch.ones(16, 16)}] * 2).total.backward()
    learning = {name for name, parameter in head.named_parameters() if parameter.grad is not None}
    assert not any("prompts.model" in name for name in learning) and "crossing.prompts.projection.weight" in learning
