"""Texts in, vectors out: from the cache where they are known, else from the provider, each text asked and paid for once."""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import batched

import numpy as np

from rag_pipeline.core.cache import EmbeddingCache
from rag_pipeline.core.errors import UsageError
from rag_pipeline.core.models import EmbeddingModel
from rag_pipeline.core.providers import Answer, InputRefused, Provider, ProviderStopped, connect_provider

__all__ = [
    "EmbeddingInput",
    "EmbeddingReport",
    "Provider",
    "connect_provider",
    "embed_question",
    "embed_stream",
    "probe",
    "same_model",
]
