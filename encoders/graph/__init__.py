"""Graph encoders: one feature per node."""

from encoders.graph.graphgpt import GraphGPTEncoder
from encoders.graph.message_passing import MessagePassingEncoder
from encoders.graph.nodes import NodeEncoder
from encoders.graph.processor import GraphProcessor, hash_text
from encoders.graph.transformer import GraphTransformerEncoder

__all__ = [
    "GraphGPTEncoder",
    "GraphProcessor",
    "GraphTransformerEncoder",
    "MessagePassingEncoder",
    "NodeEncoder",
    "hash_text",
]
