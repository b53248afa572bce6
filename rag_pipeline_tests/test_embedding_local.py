"""The local model: true to a float reference, the same in any company, never cutting a text."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from rag_pipeline.core.cache import EmbeddingCache
from rag_pipeline.core.embedding import EmbeddingInput, embed_question, embed_stream
from rag_pipeline.core.errors import ProviderError
from rag_pipeline.core.models import embedding_model
from rag_pipeline.core.providers import InputRefused, local
from rag_pipeline.core.providers.local import LocalProvider

MODEL = embedding_model("local/all-MiniLM-L6-v2")
TEXTS = [
    "How do I reset a password?",
    "The quick brown fox jumps over the lazy dog.",
    "",
    "a",
    "SELECT count(*) FROM pg_class WHERE relkind = 'r';",
    "Ein Text auf Deutsch, mit Umlauten: äöüß. 这是中文。 Русский текст.",
    "Photosynthesis turns light into chemical energy. " * 8,
    "word " * 120,
]


@pytest.fixture(scope="module")
def provider() -> LocalProvider:
    return LocalProvider(MODEL)


def embed(provider: LocalProvider, texts: list[str]) -> np.ndarray:
    return provider.embed(texts, tokens=0, hurry=False, stop=threading.Event()).vectors


class FloatReference:
    """BERT's encoder in float32 (Devlin et al. 2018: a layer norm after each residual), straight from the weights."""

    HEADS = 12

    def __init__(self):
        self.tokenizer = local._tokenizer()
        file = local._packaged(local.TOKENIZER[0], str(Path(local.TOKENIZER[1]).with_name("model.safetensors")))
        data = file.read_bytes()
        size = int.from_bytes(data[:8], "little")
        self.weights = {}
        for name, entry in json.loads(data[8 : 8 + size]).items():
            if entry.get("dtype") == "F32":
                start, end = (8 + size + offset for offset in entry["data_offsets"])
                self.weights[name] = np.frombuffer(data[start:end], "<f4").reshape(entry["shape"])

    def linear(self, name: str, states: np.ndarray) -> np.ndarray:
        return states @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, states: np.ndarray) -> np.ndarray:
        centred = states - states.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt(centred.var(axis=-1, keepdims=True) + 1e-12)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attention(self, name: str, states: np.ndarray) -> np.ndarray:
        length, width = states.shape

        def heads(part: str) -> np.ndarray:
            return self.linear(f"{name}.self.{part}", states).reshape(length, self.HEADS, -1).transpose(1, 0, 2)

        scores = heads("query") @ heads("key").transpose(0, 2, 1) / np.sqrt(width / self.HEADS)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        mixed = (shares @ heads("value")).transpose(1, 0, 2).reshape(length, width)
        return self.norm(f"{name}.output.LayerNorm", states + self.linear(f"{name}.output.dense", mixed))

    def embed(self, text: str) -> np.ndarray:
        ids = self.tokenizer.encode(text).ids
        states = (
            self.weights["embeddings.word_embeddings.weight"][ids]
            + self.weights["embeddings.position_embeddings.weight"][: len(ids)]
            + self.weights["embeddings.token_type_embeddings.weight"][0]
        )
        states = self.norm("embeddings.LayerNorm", states)
        for layer in range(6):
            name = f"encoder.layer.{layer}"
            states = self.attention(f"{name}.attention", states)
            inner = gelu(self.linear(f"{name}.intermediate.dense", states))
            states = self.norm(f"{name}.output.LayerNorm", states + self.linear(f"{name}.output.dense", inner))
        mean = states.mean(axis=0)
        return mean / np.linalg.norm(mean)


def gelu(values: np.ndarray) -> np.ndarray:
    """x times the normal distribution's cumulative probability at x; erf by Abramowitz and Stegun 7.1.26 (1.5e-7)."""
    scaled = np.abs(values) / np.sqrt(2)
    t = 1 / (1 + 0.3275911 * scaled)
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return values * 0.5 * (1 + np.sign(values) * (1 - poly * np.exp(-scaled * scaled)))


def test_it_is_true_to_a_float_reference(provider):
    reference = FloatReference()
    cosines = [
        float(vector @ reference.embed(text)) for text, vector in zip(TEXTS, embed(provider, TEXTS), strict=True)
    ]
    assert min(cosines) >= 0.99


def test_vectors_have_length_one(provider):
    vectors = embed(provider, TEXTS)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_a_text_has_the_same_vector_in_any_batch_and_thread(provider):
    alone = np.stack([embed(provider, [text])[0] for text in TEXTS])
    together = embed(provider, TEXTS)
    reversed_ = embed(provider, TEXTS[::-1])[::-1]
    rows = {}
    inputs = [EmbeddingInput(hashlib.sha256(text.encode()).digest(), text) for text in TEXTS for _ in range(2)]
    cache = EmbeddingCache(None, provider.base_url, MODEL.name, MODEL.dimensions)
    embed_stream(inputs, provider, cache, lambda stored: rows.update({text: vector for _, text, vector in stored}))
    streamed = np.stack([rows[text] for text in TEXTS])
    for other in (together, reversed_, streamed):
        assert (alone * other).sum(axis=1).min() >= 0.9999


def test_it_means_something(provider):
    question, right, wrong = embed(
        provider,
        [
            "How do I reset my password?",
            "Click on 'forgot password' to choose a new one.",
            "Bananas are rich in potassium.",
        ],
    )
    assert question @ right > question @ wrong + 0.2


def test_count_is_what_the_model_reads(provider):
    assert provider.count(["", "hello world", "word " * 1000]) == [2, 4, 1002]


def test_a_text_over_the_limit_is_refused_never_cut(provider):
    longest = "word " * (MODEL.max_input_tokens - 2)
    assert embed(provider, [longest]).shape == (1, 384)
    with pytest.raises(InputRefused, match=str(MODEL.max_input_tokens)):
        embed(provider, [longest + "word"])
    with pytest.raises(ProviderError, match="shorten it"):
        embed_question(provider, EmbeddingCache(None, "local", MODEL.name, 384), longest + "word")


def test_a_text_over_the_limit_fails_alone(provider):
    texts = [*TEXTS, "word " * 300]
    inputs = [EmbeddingInput(hashlib.sha256(text.encode()).digest(), text) for text in texts]
    rows = []
    report = embed_stream(inputs, provider, EmbeddingCache(None, "local", MODEL.name, 384), rows.extend)
    assert [hash for hash, _ in report.refused] == [inputs[-1].hash]
    assert len(rows) == len(TEXTS)
    assert report.cost_usd == 0.0


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(local, "GRAPH", ("no_such_package", "model.onnx"))
    monkeypatch.setattr(local, "_load_session", local._load_session.__wrapped__)
    with pytest.raises(ProviderError, match="pip install no-such-package"):
        embed(LocalProvider(MODEL), ["text"])


def test_importing_the_package_loads_no_model_library():
    """Each of them takes a good part of a second, which `rag --help` need not wait for."""
    check = (
        "import sys, rag_pipeline.core.embedding as e, rag_pipeline.core.models as m;"
        "e.connect_provider(m.embedding_model('openai/text-embedding-3-small'), api_key='k');"
        "print({'openai', 'onnxruntime', 'tokenizers'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, env=os.environ, check=True)
    assert run.stdout.strip() == "set()"
