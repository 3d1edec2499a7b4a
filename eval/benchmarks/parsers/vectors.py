"""Vectors of a head."""

from __future__ import annotations

from eval.benchmarks.answer import Answer
from eval.benchmarks.parser import Parser
from eval.prediction import Prediction
from inference.files import decode_vector


class VectorParser(Parser):
    """Whether there is a vector; the answer's value is its width, the numbers stand in the result."""

    def parse(self, row: Prediction) -> Answer:
        """The width, or "no vector"."""
        result = row.first_result("embedding")
        if result is None:
            return Answer(None, "no vector")
        vector = decode_vector(str(result["float32"]))
        return Answer(len(vector)) if bool(vector.isfinite().all()) else Answer(None, "a vector that is not finite")
