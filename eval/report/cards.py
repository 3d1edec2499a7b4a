"""Cards of held-out examples: what was asked, what came back drawn or played, and what was right."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from operator import itemgetter
from typing import Any

from torch import Tensor

from data.inspection.drawing import (
    Overlay,
    audio_player,
    frames_of,
    graph_figure,
    mask_layer,
    picture,
    video_player,
)
from data.media import Video, decode_mask, decode_media
from data.shards import Sample
from eval.benchmarks.answer import Answer
from eval.benchmarks.benchmark import Benchmark
from eval.prediction import Prediction, reference_value
from inference.files import decode_image
from layers.media import Graph

BOX_LEGEND = (
    '<div class="legend"><span><i style="border-color:#ff5fd2"></i>box of the head</span><span><i '
    'style="border-color:#34d6ff"></i>box in tokens</span><span><i style="border-top-style:dashed"></i>reference</span>'
    "</div>"
)
MASK_LEGEND = (
    '<div class="legend"><span><i style="border-color:#ff5fd2"></i>predicted mask</span><span><i></i>outline of the '
    "reference</span></div>"
)
"""Of a video."""
_SHOWN = re.compile(r"\[(image|video|audio|graph)\] ?")  # the card shows them
MAX_BOXES = 20
MAX_WORDS = 4000
"""Characters of a text that a card shows."""
_TOKEN = re.compile(r"(&lt;/?[a-z][a-z0-9_]*&gt;)")


def choose(judged: Iterable[tuple[Prediction, bool]], each: int = 3) -> list[tuple[Prediction, bool]]:
    """Right and wrong examples, drawn by the hash of their keys and by nothing else.

    Args:
        judged: (prediction, whether it is right); may be a stream.
        each: How many of either; where there are fewer of one, more of the other are shown.
    """
    kept: dict[bool, list[tuple[bytes, Prediction]]] = {True: [], False: []}
    for row, is_right in judged:
        own = kept[is_right]
        own.append((hashlib.sha256(row.key.encode()).digest(), row))
        if len(own) > 4 * each:
            own[:] = sorted(own, key=itemgetter(0))[: 2 * each]
    right, wrong = (sorted(kept[side], key=itemgetter(0))[: 2 * each] for side in (True, False))
    num_wrong = min(len(wrong), max(each, 2 * each - len(right)))
    return [(row, True) for _, row in right[: 2 * each - num_wrong]] + [(row, False) for _, row in wrong[:num_wrong]]


def samples_of(benchmark: Benchmark, keys: Collection[str]) -> dict[str, Sample]:
    """Samples by key, read in one pass."""
    return {sample.key: sample for sample in benchmark.records() if sample.key in keys}


def card(prediction: Prediction, right: bool, sample: Sample | None, answer: Answer | None = None) -> str:
    """One example as HTML.

    Args:
        prediction: What was asked, and what came back.
        right: Whether it counts as right.
        sample: With the media; without it none are shown.
        answer: What was read from the reply, shown where it is not simply the text.
    """
    tag = f'<span class="tag {"good" if right else "bad"}">{"right" if right else "wrong"}</span>'
    kind = escape(str(prediction.meta.get("question_type", prediction.benchmark)))
    question = _SHOWN.sub("", prediction.prompt.removeprefix("user: ")).strip() or "(spoken)"
    parts = [
        f'<div class="top"><span class="small soft">{kind}</span>{tag}</div>',
        f'<p class="question">{escape(question)}</p>',
        _media(prediction, sample) if sample is not None else "",
        _said(prediction, answer),
        f'<details><summary class="small">raw reply</summary><code class="raw">{_raw(prediction.raw)}</code></details>',
    ]
    return f'<article class="card">{"".join(filter(None, parts))}</article>'


def _media(prediction: Prediction, sample: Sample) -> str:
    figures: list[str] = []
    players: list[str] = []
    legends: list[str] = []
    texts: list[str] = []
    for name, item in sample.record.media.items():
        data = sample.members[item.file]
        raw = decode_media(item, data)
        if isinstance(raw, Tensor):
            own, legend = _image(raw, prediction)
            figures += own
            legends += legend
        elif isinstance(raw, Video):
            figures += frames_of(raw, name)
        elif isinstance(raw, Graph):
            texts.append(_node_texts(name, raw))
            figures.append(graph_figure(raw, f"{name}, {raw.num_nodes} nodes"))
        else:
            players.append(audio_player(data, item.file))
    if not any(item.type == "image" for item in sample.record.media.values()):
        figures += _pictures(prediction)
    players += _players(prediction)
    shown = f'<div class="media">{"".join(figures)}</div>' if figures else ""
    return shown + "".join(dict.fromkeys(legends)) + "".join(players + texts)


def _node_texts(name: str, graph: Graph) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in graph.node_texts)
    return f'<details><summary class="small">{escape(name)}: node texts</summary><ol start="0">{items}</ol></details>'


def _image(image: Tensor, prediction: Prediction) -> tuple[list[str], list[str]]:
    """The input image with boxes and masks drawn, then generated pictures; and the legends."""
    calls = prediction.reference["calls"]
    about = [(call.get("target") or {}).get("type") for call in calls]
    on_input = [call for place, call in enumerate(calls) if _made_for(calls, about, place) is None]
    targets = [call["target"] for call in on_input if call.get("target")]
    results = _results_on(prediction, None)
    right: list[Overlay] = [("reference", box) for box in _of_reference(targets, "box", "boxes", "box_xyxy")]
    boxes: list[Overlay] = [
        ("head", box) for r in results if r["type"] == "boxes" for box in r["boxes_xyxy"][:MAX_BOXES]
    ]
    boxes += [("tokens", region["box_xyxy"]) for region in _regions(prediction.calls)] if right else []
    boxes += right
    references: list[Tensor] = _of_reference(targets, "mask", "masks", "mask")
    masks = [decode_mask(mask) for r in results for mask in _predicted_masks(r)]
    layer = mask_layer(masks, references) if references else None
    pictures = _pictures(prediction)
    legends = ([BOX_LEGEND] if boxes else []) + ([MASK_LEGEND] if layer is not None else [])
    return [picture(image, "before" if pictures else "", boxes, layer), *pictures], legends


def _of_reference(targets: Sequence[Mapping[str, Any]], one: str, several: str, field: str) -> list[Any]:
    """The boxes, or the masks, of the references that are such."""
    found = []
    for target in targets:
        if target["type"] == one:
            found.append(reference_value(target))
        elif target["type"] == several:
            found += [item[field] for item in reference_value(target)]
    return found


def _predicted_masks(result: Mapping[str, Any]) -> list[Any]:
    return [result["mask"]] if result["type"] == "mask" else result.get("masks", [])


def _pictures(prediction: Prediction) -> list[str]:
    """Generated pictures, with what was found in them, and what a reference looks like."""
    targets = [call["target"] for call in prediction.reference["calls"] if call.get("target")]
    figures = []
    for place, item in enumerate(prediction.results):
        if item is not None and item["type"] == "image":
            own = _results_on(prediction, place)
            boxes: list[Overlay] = [("head", box) for r in own if r["type"] == "boxes" for box in r["boxes_xyxy"]]
            masks = [decode_mask(mask) for r in own for mask in _predicted_masks(r)]
            layer = mask_layer(masks, []) if masks else None
            figures.append(picture(decode_image(item["png"]), "from the model", boxes[:MAX_BOXES], layer))
    return figures + [
        picture(decode_image(target["data"]), "a reference") for target in targets if target["type"] == "image"
    ]


def _results_on(prediction: Prediction, picture_of: int | None) -> list[Mapping[str, Any]]:
    """The results of calls that are about the picture that a call made, or about the input image."""
    kinds = [None if item is None else item["type"] for item in prediction.results]
    return [
        item
        for place, item in enumerate(prediction.results)
        if item is not None and _made_for(prediction.calls, kinds, place) == picture_of
    ]


def _made_for(calls: Sequence[Mapping[str, Any]], kinds: Sequence[str | None], place: int) -> int | None:
    """The earlier call that made the picture that a call is about; None where that is the input image."""
    for item in reversed(calls[place]["groundings"] if place < len(calls) else ()):
        index = item["call_index"] if item["type"] == "result" else place
        kind = kinds[index] if index < min(place, len(kinds)) else None
        if kind == "image":
            return int(index)
        if kind in ("box", "boxes", "mask", "masks"):
            return _made_for(calls, kinds, index)
    return None


def _players(prediction: Prediction) -> list[str]:
    """Generated sounds and videos."""
    made = [item for item in prediction.results if item is not None and item["type"] in ("audio", "video")]
    return [
        (audio_player if item["type"] == "audio" else video_player)(
            base64.b64decode(item["data"]), f"result.{item['format']}"
        )
        for item in made
    ]


def _regions(calls: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [item for call in calls for item in call["groundings"] if item["type"] == "region"]


def _said(prediction: Prediction, answer: Answer | None) -> str:
    rows = [("reply", _reply_words(prediction)), ("reference", _words(prediction.reference))]
    if answer is not None and answer.parsed and answer.value != prediction.text:
        rows.insert(1, ("read as", escape(str(answer.value)[:MAX_WORDS])))
    if answer is not None and not answer.parsed and not prediction.failed:
        rows.insert(1, ("problem", escape(answer.status)))
    if prediction.meta.get("transcript") and prediction.meta["transcript"] != prediction.reference["text"]:
        rows.append(("spoken", escape(str(prediction.meta["transcript"]))))
    rows += [("problem", escape(f"{error['kind']}: {error['message']}")) for error in prediction.errors]
    if prediction.finish_reason == "length":
        rows.append(("problem", "cut at the length limit"))
    return '<dl class="said">' + "".join(f"<dt>{name}</dt><dd>{words}</dd>" for name, words in rows) + "</dl>"


def _reply_words(prediction: Prediction) -> str:
    results = [_result_words(item) for item in prediction.results]
    words = _words({"text": prediction.text, "calls": prediction.calls}) or '<span class="soft">nothing</span>'
    told = "; ".join(item for item in results if item)
    return words + (f" → {escape(told)}" if told else "")


def _words(said: Mapping[str, Any]) -> str:
    calls = []
    for call in said["calls"]:
        groundings = f" + {len(call['groundings'])} region" if call["groundings"] else ""
        calls.append(f"<code>{escape(call['task'])}({escape(call['prompt'])}{groundings})</code>{_target_words(call)}")
    return " ".join(filter(None, [escape(_cut(said["text"])), ", ".join(calls)]))


def _target_words(call: Mapping[str, Any]) -> str:
    target = call.get("target")
    if target is None or target["type"] not in ("label", "score"):
        return ""
    return f" → {escape(str(target['value']))}"


def _result_words(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return "refused by the head"
    if result["type"] == "label":
        probability = result["probabilities"].get(result["label"])
        return result["label"] + (f" ({probability:.0%})" if probability is not None else "")
    return "; ".join(filter(None, [_value_words(result), *result.get("notes", ())]))


def _value_words(result: Mapping[str, Any]) -> str:
    if result["type"] == "audio":
        return f"{result['seconds']:.1f} s of sound"
    if result["type"] == "video":
        return f"{result['frames']} frames at {result['fps']:g} a second"
    if result["type"] in ("boxes", "masks") and result.get("labels"):
        found = zip(result["labels"], result["scores"], strict=True)
        return ", ".join(f"{label} ({score:.2f})" for label, score in found)
    return f"probability {result['score']:.2f}" if result["type"] == "score" else ""


def _raw(text: str) -> str:
    return _TOKEN.sub(r"<b>\1</b>", escape(_cut(text)))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_WORDS else f"{text[:MAX_WORDS]} … ({len(text):,} characters)"
