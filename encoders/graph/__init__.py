"""Graph encoders: one feature per node."""

from encoders.graph.message_passing import MessagePassingEncoder
from encoders.graph.nodes import NodeEncoder
from encoders.graph.processor import GraphProcessor, hash_text
from encoders.graph.transformer import GraphTransformerEncoder

__all__ = ["GraphProcessor", "GraphTransformerEncoder", "MessagePassingEncoder", "NodeEncoder", "hash_text"]
