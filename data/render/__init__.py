"""The one renderer: a record or a conversation becomes token ids, labels, media inputs and head targets.

Training and inference share it, so a model never meets a prompt that it was not trained on.
"""

from data.render.rendered import IGNORED, Rendered, RenderedMedia, RenderedSampleCall, RenderedSize, RenderError
from data.render.rendering import render, render_prompt, rendered_size
from data.render.writer import instruction_of

__all__ = [
    "IGNORED",
    "RenderError",
    "Rendered",
    "RenderedMedia",
    "RenderedSampleCall",
    "RenderedSize",
    "instruction_of",
    "render",
    "render_prompt",
    "rendered_size",
]
