"""Sampling from a teacher through a server with OpenAI's completions, such as vLLM's or TensorRT-LLM's.

Every sample has a seed of its own, by the run's seed and the sample's number, and its prompt is sent as token
ids. What a server answers to a seed still depends on what else it computes at that moment, so that a text is
sampled again to other bytes: only what was written stays. Prompts and completions are joined as text.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.choices.samplers import SAMPLERS
from compressor.core.errors import ResourceError, VerificationError
from compressor.core.programs import Program, failure, running
from compressor.data.tokenise import TokenArray
from compressor.recipe.recipe import Generate

SAMPLES_IN_FLIGHT = 64
_HOST = "127.0.0.1"
_START_TIMEOUT_S = 1800.0  # loading, compiling and graph capture of a large model
_ANSWER_TIMEOUT_S = 1800.0
_POLL_S = 0.1
_SEEDS = np.uint32(0x7FFFFFFF)  # servers take signed seeds
_OK = 200


@dataclass(frozen=True, kw_only=True)
class SampledText:
    """One sample: prompt and completion as text, its sampled tokens, whether the model ended it itself."""

    text: str
    num_tokens: int
    is_ended: bool


def vllm_line(path: Path, *, port: int) -> list[str]:
    """The call of `vllm serve`; the checkpoint's own sampling settings do not apply."""
    return [
        *("vllm", "serve", str(path), "--host", _HOST, "--port", str(port)),
        *("--served-model-name", path.name, "--generation-config", "vllm"),
    ]


def trtllm_line(path: Path, *, port: int) -> list[str]:
    """The call of `trtllm-serve`."""
    return ["trtllm-serve", str(path), "--host", _HOST, "--port", str(port), "--backend", "pytorch"]


class ServerSampler:
    """Draws numbered batches of samples from a running server."""

    def __init__(
        self, server: Program, port: int, *, model: str, tokenizer: Any, config: Generate, seed: int
    ) -> None:
        self._server, self._port, self._tokenizer = server, port, tokenizer
        self._model, self._config, self._seed = model, config, seed
        self.prompts: TokenArray | None = None
        self.start = 0
        self.ends: tuple[int, ...] = ()

    def samples(self, number: int) -> list[SampledText]:
        """The batch's samples, in order.

        Raises:
            ResourceError: when the server fails or does not answer in time.
            VerificationError: for an answer that is no sample, or a shorter one than was asked for.
        """
        first = number * SAMPLES_IN_FLIGHT
        with ThreadPoolExecutor(SAMPLES_IN_FLIGHT) as pool:
            return list(pool.map(self._sample, range(first, first + SAMPLES_IN_FLIGHT)))

    def _sample(self, index: int) -> SampledText:
        prompt = [] if self.prompts is None else self.prompts[index % len(self.prompts)].tolist()
        asked = {
            "model": self._model,
            "prompt": [self.start, *prompt],
            "max_tokens": self._config.max_new_tokens,
            "temperature": self._config.temperature,
            "top_p": self._config.top_p,
            "seed": seed_of(self._seed, index),
            "stop_token_ids": list(self.ends),
            "skip_special_tokens": False,
        }
        text, num_tokens, is_ended = _read_answer(self._ask(asked), self._config.max_new_tokens)
        before = self._tokenizer.decode(prompt, clean_up_tokenization_spaces=False) if prompt else ""
        return SampledText(text=before + text, num_tokens=num_tokens, is_ended=is_ended)

    def _ask(self, question: dict[str, object]) -> dict[str, Any]:
        connection = http.client.HTTPConnection(_HOST, self._port, timeout=_ANSWER_TIMEOUT_S)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/completions", json.dumps(question), headers)
            response = connection.getresponse()
            status, body = response.status, response.read().decode("utf-8", errors="replace")
        except (OSError, http.client.HTTPException) as error:
            code = self._server.returncode
            if code is not None:
                raise failure(self._server.name, code, self._server.output()) from error
            raise ResourceError(
                f"{self._server.name} did not answer",
                found=error,
                hint="run the same command again: it continues behind what was written",
            ) from error
        finally:
            connection.close()
        answer = _parsed(body)
        if status != _OK or answer is None:
            raise _no_sample(f"HTTP status {status}: {body[:200]}")
        return answer


def seed_of(seed: int, index: int) -> int:
    """The seed of one sample, below 2^31."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint32)[0] & _SEEDS)


@contextlib.contextmanager
def served(name: str, path: Path, *, tokenizer: Any, config: Generate, seed: int) -> Iterator[ServerSampler]:
    """A server of this row of the samplers with the checkpoint, until the end of the block.

    Raises:
        DependencyError: when its program is missing.
        ResourceError: when it does not start.
    """
    row = SAMPLERS[name]
    row.require_found()
    port, place = _free_port(), path.resolve()
    with running(str(row.executable), row.load()(place, port=port)) as server:
        _await_health(server, port)
        yield ServerSampler(server, port, model=place.name, tokenizer=tokenizer, config=config, seed=seed)


def _await_health(server: Program, port: int) -> None:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while not _is_healthy(port):
        if (code := server.returncode) is not None:
            raise failure(server.name, code, server.output())
        if time.monotonic() > deadline_s:
            raise ResourceError(
                f"{server.name} did not start in time and was stopped",
                expected=f"ready within {_START_TIMEOUT_S:.0f} s",
                hint="sample with transformers: --sampler, --generate-sampler in a run",
            )
        time.sleep(_POLL_S)


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection(_HOST, port, timeout=_POLL_S * 100)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == _OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _parsed(body: str) -> dict[str, Any] | None:
    try:
        answer = json.loads(body)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _read_answer(answer: dict[str, Any], max_new_tokens: int) -> tuple[str, int, bool]:
    """Text, sampled tokens without an end token, and whether the model ended it."""
    try:
        [choice], used = answer["choices"], answer["usage"]["completion_tokens"]
        text, reason = choice["text"], choice["finish_reason"]
    except (KeyError, TypeError, ValueError) as error:
        raise _no_sample(json.dumps(answer)[:200]) from error
    if not isinstance(text, str) or not isinstance(used, int) or reason not in ("stop", "length"):
        raise _no_sample(json.dumps(answer)[:200])
    is_ended = reason == "stop"
    if not is_ended and used != max_new_tokens:
        raise VerificationError(
            "the server answered fewer tokens than it was asked for",
            expected=max_new_tokens,
            found=used,
            hint="lower --max-new-tokens, or raise the server's limits",
        )
    return text, used - is_ended, is_ended


def _no_sample(found: str) -> VerificationError:
    return VerificationError(
        "the server's answer holds no sample",
        expected="one choice with text and finish_reason, and usage.completion_tokens",
        found=found,
        hint="sample with transformers: --sampler, --generate-sampler in a run",
    )


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((_HOST, 0))
        return int(found.getsockname()[1])
