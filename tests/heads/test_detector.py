"""Frozen detectors: the answers of the library's own post-processing, by words, by classes, and within regions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertTokenizerFast,
    CLIPTokenizerFast,
    DFineConfig,
    DFineForObjectDetection,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
    RTDetrImageProcessor,
)

from heads.boxes import DetectorHead
from heads.experts.expert_head import share_experts
from heads.experts.files import ExpertError
from heads.experts.pool import ExpertPool
from heads.masks import SamMaskHead
from layers.calls import BoxesResult, MaskResult, MasksResult
from tests.heads.experts import SAM, seen

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "a", "red", "car", "dog", "the"]
SIZES = [(40, 20), (33, 57)]
CLASSES = ["cat", "dog", "cow"]


def grounding_dino(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    backbone: dict[str, Any] = {"model_type": "swin", "image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1]}
    backbone |= {"num_heads": [1, 2, 2, 2], "window_size": 4, "out_features": ["stage2", "stage3", "stage4"]}
    text = {"model_type": "bert", "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "intermediate_size": 16}
    config = GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=12,
        encoder_n_points=2,
        decoder_n_points=2,
        max_text_len=16,
        disable_custom_kernels=True,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    image = GroundingDinoImageProcessor(size={"shortest_edge": 48, "longest_edge": 96})
    GroundingDinoProcessor(image, BertTokenizerFast(vocab=str(folder / "vocab.txt"))).save_pretrained(folder)


def owl(folder: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["!", "<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    text = {"vocab_size": len(vocabulary), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"intermediate_size": 16, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision |= {"image_size": 32, "patch_size": 8}
    config = Owlv2Config(text_config={**text, "pad_token_id": 2}, vision_config=vision, projection_dim=16)
    Owlv2ForObjectDetection(config).save_pretrained(folder)
    tokenizer = CLIPTokenizerFast(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=16
    )
    Owlv2Processor(Owlv2ImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)


def d_fine(folder: Path) -> None:
    backbone = {"model_type": "hgnet_v2", "depths": [1, 1, 1, 1], "stem_channels": [3, 8, 8], "embedding_size": 8}
    backbone |= {"hidden_sizes": [8, 8, 16, 16], "stage_in_channels": [8, 8, 8, 16], "stage_mid_channels": [8] * 4}
    backbone |= {"stage_out_channels": [8, 8, 16, 16], "stage_num_blocks": [1] * 4, "stage_numb_of_layers": [1] * 4}
    backbone |= {"stage_downsample": [False, True, True, True], "stage_light_block": [False] * 4}
    backbone |= {"stage_kernel_size": [3] * 4, "out_features": ["stage2", "stage3", "stage4"]}
    config = DFineConfig(
        backbone_config=backbone,
        encoder_hidden_dim=16,
        encoder_in_channels=[8, 16, 16],
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        d_model=16,
        decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=16,
        decoder_attention_heads=2,
        decoder_layers=2,
        decoder_n_points=[2, 2, 2],
        num_queries=12,
        num_denoising=0,
        anchor_image_size=[64, 64],
        id2label=dict(enumerate(CLASSES)),
        label2id={name: index for index, name in enumerate(CLASSES)},
    )
    DFineForObjectDetection(config).save_pretrained(folder)
    RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    request.param(tmp_path)
    return tmp_path


def check(result: Any, theirs: dict[str, Any], labels: list[str], size: tuple[int, int]) -> None:
    """The library's answer, best first and clipped to the image."""
    assert isinstance(result, BoxesResult) and len(theirs["scores"]), "nothing to compare"
    order = theirs["scores"].argsort(descending=True, stable=True)[:100]
    assert result.scores == pytest.approx(theirs["scores"][order].tolist(), abs=1e-6)
    limit = torch.tensor([*size, *size])
    clipped = torch.minimum(theirs["boxes"][order].clamp(min=0), limit)
    torch.testing.assert_close(torch.tensor(result.boxes_xyxy), clipped, atol=1e-4, rtol=1e-5)
    assert list(result.labels) == [labels[place] for place in order.tolist()]


@pytest.mark.parametrize("folder", [grounding_dino], indirect=True)
def test_grounding_dino_finds_what_the_library_finds(folder: Path) -> None:
    head = DetectorHead(str(folder), threshold=0.05, text_threshold=0.02)
    model = GroundingDinoForObjectDetection.from_pretrained(folder).eval()
    processor = GroundingDinoProcessor.from_pretrained(folder)
    for size in SIZES:
        context = seen(size, "a red car; the dog")
        picture = context.image.load_original()
        inputs = processor(images=picture, text="a red car. the dog.", return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        (theirs,) = processor.post_process_grounded_object_detection(
            outputs, inputs["input_ids"], 0.05, 0.02, target_sizes=[size[::-1]]
        )
        (result,) = head.decode(head(None, [0], [context]), [context])
        check(result, theirs, theirs["text_labels"], size)


@pytest.mark.parametrize("folder", [owl], indirect=True)
def test_owl_finds_what_the_library_finds_and_regions_restrict_it(folder: Path) -> None:
    size = (40, 20)
    model, processor = Owlv2ForObjectDetection.from_pretrained(folder).eval(), Owlv2Processor.from_pretrained(folder)
    context = seen(size, "cat; a dog")
    inputs = processor(images=context.image.load_original(), text=[["cat", "a dog"]], return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    (theirs,) = processor.post_process_grounded_object_detection(
        outputs, 0.0, target_sizes=[size[::-1]], text_labels=[["cat", "a dog"]]
    )
    everywhere = DetectorHead(str(folder), threshold=0.0).find([context])[0]
    check(everywhere, theirs, theirs["text_labels"], size)
    centres = sorted((box[0] + box[2]) / 2 for box in everywhere.boxes_xyxy)
    left, right = centres[0] - 0.01 if centres[0] > 0.01 else 0.0, (centres[0] + centres[-1]) / 2
    region = seen(size, "cat; a dog", regions=[(left, 0.0, right, 20.0)])
    within = DetectorHead(str(folder), "boxes", threshold=0.0).find([region])[0]
    kept = [b for b in everywhere.boxes_xyxy if left <= (b[0] + b[2]) / 2 <= right]
    assert list(within.boxes_xyxy) == kept and 0 < len(kept) < len(everywhere.boxes_xyxy)
    best = DetectorHead(str(folder), answer="best", threshold=0.0).find([context])[0]
    firsts = [everywhere.labels.index(label) for label in dict.fromkeys(everywhere.labels)]
    assert best.boxes_xyxy == tuple(everywhere.boxes_xyxy[place] for place in firsts)
    with pytest.raises(ValueError, match="expected words to look for"):
        everywhere = DetectorHead(str(folder)).find([seen(size, " ; ")])[0]


@pytest.mark.parametrize("folder", [d_fine], indirect=True)
def test_a_closed_detector_is_asked_for_some_of_its_classes(folder: Path) -> None:
    size = (33, 57)
    model, processor = (
        DFineForObjectDetection.from_pretrained(folder).eval(),
        RTDetrImageProcessor.from_pretrained(folder),
    )
    context = seen(size, "")
    inputs = processor(images=context.image.load_original(), return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    (theirs,) = processor.post_process_object_detection(outputs, 0.0, target_sizes=[size[::-1]])
    head = DetectorHead(str(folder), threshold=0.0)
    everything = head.find([context])[0]
    check(everything, theirs, [CLASSES[index] for index in theirs["labels"].tolist()], size)
    some = head.find([seen(size, "Cow; cat")])[0]
    assert set(some.labels) <= {"cow", "cat"} and 0 < len(some.labels)
    assert list(some.scores) == [
        s for s, label in zip(everything.scores, everything.labels, strict=True) if label != "dog"
    ]
    with pytest.raises(ValueError, match=r"expected one of \['cat', 'dog', 'cow'\], got 'zebra'"):
        head.find([seen(size, "cat; zebra")])


@pytest.mark.parametrize("folder", [owl], indirect=True)
def test_words_become_masks_through_a_detector_and_sam(folder: Path) -> None:
    """Each box that the detector finds is the prompt of a mask, with its label and score."""
    size = (40, 20)
    context = seen(size, "cat; a dog")
    detector = DetectorHead(str(folder), answer="best", threshold=0.0)
    head = SamMaskHead(12, config=SAM, link="text", detector=detector, instances=True, train_decoder=False).eval()
    with torch.no_grad():
        (result,) = head.decode(head(None, [0], [context]), [context])
    found = detector.find([context])[0]
    assert isinstance(result, MasksResult)
    assert result.labels == found.labels and result.scores == found.scores
    prompted = SamMaskHead(12, config=SAM, link="boxes", instances=True, train_decoder=False).eval()
    prompted.sam.load_state_dict(head.sam.state_dict())
    by_boxes = seen(size, regions=found.boxes_xyxy)
    with torch.no_grad():
        (expected,) = prompted.decode(prompted(None, [0], [by_boxes]), [by_boxes])
    assert isinstance(expected, MasksResult)
    assert {mask.numpy().tobytes() for mask in expected.masks} == {mask.numpy().tobytes() for mask in result.masks}
    detector.threshold = 1.0
    with torch.no_grad():
        (nothing,) = head.decode(head(None, [0], [context]), [context])
        head.instances = False
        (blank,) = head.decode(head(None, [0], [context]), [context])
    assert isinstance(nothing, MasksResult) and nothing.masks.shape == (0, 20, 40)
    assert isinstance(blank, MaskResult) and not blank.mask.any() and blank.score == 0
    with pytest.raises(ValueError, match="a detector goes with link 'text'"):
        SamMaskHead(12, config=SAM, detector=detector)


@pytest.mark.parametrize("folder", [owl], indirect=True)
def test_detectors_of_heads_and_of_heads_within_them_are_loaded_once_under_the_pools_budget(folder: Path) -> None:
    context = seen((40, 20), "cat; a dog")
    every, own = (DetectorHead(str(folder), threshold=0.0) for _ in range(2))
    best = DetectorHead(str(folder), answer="best", threshold=0.0)
    masks = SamMaskHead(12, config=SAM, link="text", detector=own, train_decoder=False).eval()
    pool = ExpertPool("1 GiB")
    share_experts([every, best, masks], pool)
    assert own.experts is pool and not pool.loaded, "nothing is loaded before it is asked"
    found = [head.find([context])[0] for head in (every, best, own)]
    assert found[0] == found[2] and len(found[1].boxes_xyxy) < len(found[0].boxes_xyxy)
    (held,) = pool.loaded.values()
    numbers = sum(p.numel() for p in Owlv2ForObjectDetection.from_pretrained(folder).parameters())
    assert abs(held - 4 * numbers) < 1024, "the budget is read from the file's header"
    share_experts([masks], ExpertPool(held - 1), replace_own=True)
    with pytest.raises(ExpertError, match="expected at most the pool's budget"):
        masks(None, [0], [context])


@pytest.mark.parametrize(
    ("folder", "prompt"), [(owl, "x" * 40), (grounding_dino, "a red car the dog " * 9)], indirect=["folder"]
)
def test_more_words_than_a_detector_reads_are_refused(folder: Path, prompt: str) -> None:
    with pytest.raises(ValueError, match=r"expected words of at most 16 tokens, which the detector reads, got \d\d"):
        DetectorHead(str(folder)).find([seen((40, 20), prompt)])


@pytest.mark.parametrize("folder", [owl], indirect=True)
def test_a_directory_that_holds_no_detector_is_refused_before_it_is_loaded(folder: Path) -> None:
    context, config = seen((40, 20), "cat"), folder / "config.json"
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ExpertError, match=r"expected weights as safetensors \(pickles are refused\)"):
        DetectorHead(str(folder)).find([context])
    config.write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ExpertError, match="expected a detector of transformers, got a model of type 'bert'"):
        DetectorHead(str(folder)).find([context])
    config.unlink()
    with pytest.raises(ExpertError, match="expected the configuration of a model of transformers"):
        DetectorHead(str(folder)).find([context])


def test_a_detector_that_is_not_there_is_named(tmp_path: Path) -> None:
    head = DetectorHead(str(tmp_path / "nowhere"))
    with pytest.raises(ExpertError, match=r"expert '.*nowhere': expected a directory, or a repository of the hub"):
        head.find([seen((40, 20))])
    assert head.state_dict() == {} and head.links == {"text"}
    assert head.target_processor([1, 2, 3, 4], []) == {}
    with pytest.raises(ValueError, match="DetectorHead reads no states"):
        DetectorHead("somewhere", "hidden")
