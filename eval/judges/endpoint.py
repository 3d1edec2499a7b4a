"""Any OpenAI-compatible endpoint as a judge, through plain HTTP."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from eval.judges.judge import Judge, Template, Verdict

_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
_LONGEST_WAIT = 60.0


class EndpointJudge(Judge):
    """Asks ``POST URL/chat/completions`` with one user message, greedily.

    Args:
        url: Up to and without ``/chat/completions``, such as http://localhost:8000/v1.
        model: The model's name there; with the temperature it is the judge's identity, the address is not.
        key_variable: Environment variable that holds the key; none is sent where it is not set.
        timeout: Seconds until a request has failed.
        retries: Further tries after a time-out, a refused connection or a busy server, each after twice the time.
        parallel: Requests under way at once.
        max_tokens: Of a verdict.
        wait: Seconds before the first further try.

    Raises:
        ValueError: If the address is no http or https address.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str = "OPENAI_API_KEY",
        timeout: float = 60.0,
        retries: int = 4,
        parallel: int = 8,
        max_tokens: int = 256,
        wait: float = 1.0,
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"judge: expected an http or https address, got {url!r}")
        self.url, self.model = f"{url.rstrip('/')}/chat/completions", model
        self.identity = f"{model}@temperature-0"
        self._key = os.environ.get(key_variable, "")
        self._timeout, self._retries, self._wait = timeout, retries, wait
        self._parallel, self._max_tokens = parallel, max_tokens

    def verdicts(self, template: Template, payloads: Sequence[Mapping[str, str]]) -> Iterator[Verdict]:
        """Verdicts in order; several requests are under way at once."""
        prompts = [template.fill(payload) for payload in payloads]
        with ThreadPoolExecutor(self._parallel) as pool:
            yield from pool.map(self._ask, prompts)

    def _ask(self, prompt: str) -> Verdict:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self._max_tokens,
        }
        error = ""
        for tried in range(self._retries + 1):
            if tried:
                time.sleep(min(_LONGEST_WAIT, self._wait * 2 ** (tried - 1)))
            try:
                return _words(self._post(body))
            except urllib.error.HTTPError as problem:
                error = f"HTTP {problem.code} {problem.reason}"
                if problem.code not in _AGAIN:
                    break
            except (urllib.error.URLError, TimeoutError, ConnectionError, HTTPException) as problem:
                reason = getattr(problem, "reason", problem)
                error = f"timed out after {self._timeout:g} s" if isinstance(reason, TimeoutError) else str(reason)
            except ValueError as problem:
                error = f"expected JSON, got {problem}"
        return Verdict(None, error)

    def _post(self, body: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=self._timeout) as response:
            return json.loads(response.read())


def _words(answer: Any) -> Verdict:
    try:
        text = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return Verdict(None, f"expected choices[0].message.content, got {json.dumps(answer)[:120]}")
    return Verdict(text) if isinstance(text, str) else Verdict(None, "an empty verdict")
