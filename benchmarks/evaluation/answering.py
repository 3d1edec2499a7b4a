"""One way of answering, timed in a process of its own; prints its seconds and writes down its answers.

transformers is given its inputs ready; ours renders within the time that is measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # arms are started as scripts

from benchmarks.evaluation.model import PROMPT, TEXT, conversations, prompts
from data.render import render_prompt
from inference.choosing import DecodingOptions
from inference.conversation import Reply
from inference.decoding import Start, decode
from inference.reading.fused import FusedReader
from inference.session import Session
from models.generalist import Generalist
from routers.constraint import never_sampled_mask

NEW, REPEATS = 12, 3
Answers = list[list[int]]


def six_questions(folder: Path, way: str, num_images: int) -> tuple[Callable[[], Answers], int]:
    """Replies to six questions per image, of :data:`NEW` tokens at most."""
    asked = conversations(num_images)
    if way == "ours":
        session = Session.from_pretrained(folder / "ours", "cpu", max_new_tokens=NEW, batch_size=18, eager_calls=False)
        return lambda: _fused_ids(session.generate(asked)), len(asked)
    generalist = Generalist.from_pretrained(str(folder / "ours"))
    model = LlavaForConditionalGeneration.from_pretrained(folder / "theirs").eval()
    plan, encoder = generalist.plan(), generalist.encoders["image"]
    place = plan.vocabulary.media_ids["image"]
    prompts, pixels = [], []
    for item in asked:
        rendered = render_prompt(item.messages, item.media, plan)
        ids = torch.tensor(rendered.input_ids)
        prompts.append(torch.where(ids == place, model.config.image_token_id, ids))
        pixels.append(encoder.normalise(rendered.media[0].inputs["pixel_values"]))  # type: ignore[operator]
    batch = {"theirs-1": 1, "theirs-16": 16}[way]
    order = sorted(range(len(asked)), key=lambda index: len(prompts[index]))
    banned = never_sampled_mask(plan.vocabulary, model.config.text_config.vocab_size, generalist.device)
    never = banned.nonzero().flatten().tolist()

    def answer() -> Answers:
        answers: dict[int, list[int]] = {}
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            width = max(len(prompts[index]) for index in chosen)
            ids = torch.stack([_left(prompts[index], width, 0) for index in chosen])
            mask = torch.stack([_left(torch.ones_like(prompts[index]), width, 0) for index in chosen])
            images = torch.stack([pixels[index] for index in chosen])
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                pixel_values=images,
                max_new_tokens=NEW,
                do_sample=False,
                suppress_tokens=never,
            )
            for index, row in zip(chosen, out[:, width:].tolist(), strict=True):
                answers[index] = row[: row.index(1)] if 1 in row else row
        return [answers[index] for index in range(len(asked))]

    return answer, len(asked)


def decoding(folder: Path, way: str, batch: int, dtype: torch.dtype, new: int) -> tuple[Callable[[], Answers], int]:
    """Continuations of random prompts, all of the same length, by the language model alone."""
    ids = prompts(batch)
    if way == "theirs":
        model = LlamaForCausalLM.from_pretrained(folder / TEXT, dtype=dtype).eval()

        def continue_theirs() -> Answers:
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
            )
            rows: Answers = out[:, PROMPT:].tolist()
            return rows

        return continue_theirs, batch * new
    generalist = Generalist.from_pretrained(str(folder / "ours")).to(dtype).eval()
    banned = torch.zeros(generalist.language_model.vocab_size, dtype=torch.bool)
    banned[1] = True

    def continue_ours() -> Answers:
        starts = [Start(generalist.embed(row)) for row in ids]
        reader = FusedReader.of(generalist)  # as a session opens one for every batch that it is asked
        found = decode(reader, starts, DecodingOptions(new), stop_ids=[1], never_sampled=banned)
        return [item.token_ids for item in found]

    return continue_ours, batch * new


def _fused_ids(replies: Sequence[Reply]) -> Answers:
    loops = {reply.loop for reply in replies}
    if loops != {"fused"}:
        raise RuntimeError(f"expected the fused loop, got {sorted(loops)}")
    return [list(reply.token_ids) for reply in replies]


def _left(row: torch.Tensor, width: int, filler: int) -> torch.Tensor:
    return torch.nn.functional.pad(row, (width - len(row), 0), value=filler)


def main() -> None:
    """Answer once to warm up, then on the clock; the median of :data:`REPEATS` times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--work", choices=("six_questions", "decode"), required=True)
    parser.add_argument("--way", required=True)
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--answers", required=True, help="file below the folder for what was answered")
    given = parser.parse_args()
    if given.work == "six_questions":
        work, count = six_questions(given.folder, given.way, given.images)
    else:
        work, count = decoding(given.folder, given.way, given.batch, getattr(torch, given.dtype), given.new)
    with torch.inference_mode():
        answers, times = work(), []
        for _ in range(REPEATS):
            started, busy = time.perf_counter(), time.process_time()
            if work() != answers:
                raise RuntimeError("expected the same answers every time, got others")
            times.append((time.perf_counter() - started, time.process_time() - busy))
    (given.folder / given.answers).write_text(json.dumps(answers))
    seconds, busy = (statistics.median(values) for values in zip(*times, strict=True))
    values: dict[str, Any] = {"seconds": seconds, "cpu_seconds": busy, "per_second": count / seconds}
    values["versions"] = {name: version(name) for name in ("torch", "transformers")}
    print(json.dumps(values))


if __name__ == "__main__":
    main()
