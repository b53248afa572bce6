"""What the settings amount to on this machine: services that run, a migrated database, providers to ask."""

from dataclasses import dataclass, field
from functools import cached_property

from psycopg import Connection
from redis.connection import parse_url

from rag_pipeline.core import access, collections, database
from rag_pipeline.core.cache import EmbeddingCache
from rag_pipeline.core.chatting import ChatProvider, connect_chat
from rag_pipeline.core.chunking import ChunkSettings, InputLimit
from rag_pipeline.core.collections import Collection, CollectionSettings, chunk_size
from rag_pipeline.core.embedding import Provider, connect_provider
from rag_pipeline.core.errors import ServiceError, UsageError
from rag_pipeline.core.models import EmbeddingModel, embedding_model
from rag_pipeline.services import start_postgres, start_valkey
from rag_pipeline.settings import Settings


@dataclass(frozen=True)
class Runtime:
    """Everything outside the process that the pipeline needs; started or checked at the first use."""

    settings: Settings
    _providers: dict[EmbeddingModel, Provider] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def database_url(self) -> str:
        """The database, with its schema up to date. Raises ServiceError."""
        url = self.settings.database_url or start_postgres(self.settings.home)
        database.migrate(url)
        return url

    @cached_property
    def redis_url(self) -> str:
        """The Redis to use, whether it answers or not. Raises ServiceError for a URL that is none."""
        if self.settings.redis_url is None:
            return start_valkey(self.settings.home)
        try:
            parse_url(self.settings.redis_url)
        except ValueError:
            raise ServiceError("RAG_REDIS_URL is no valid Redis URL: correct it, as redis://host:6379/0") from None
        return self.settings.redis_url

    def connect(self) -> database.ScopedConnection:
        """A connection to the database, closed by whoever asked for it."""
        return database.connect(self.database_url)

    @cached_property
    def query_database_url(self) -> str:
        """Where API keys read: a login with the query role's rights alone. Raises ServiceError when there is none."""
        if self.settings.query_database_url:
            return self.settings.query_database_url
        if self.settings.database_url:
            raise ServiceError(
                f"API keys read through a login of their own: run {access.CREATE_LOGIN} and set RAG_QUERY_DATABASE_URL"
            )
        with self.connect() as connection:
            return access.embedded_query_url(connection, self.database_url)

    def connect_reader(self, *, as_owner: bool = False) -> database.ScopedConnection:
        """The connection to search on: bound to what the API key is granted. Without a key it is the owner's, and reads
        as long as access is open, or always `as_owner`."""
        if self.settings.api_key is not None:
            return access.connect_query(self.query_database_url, self.settings.api_key)
        connection = self.connect()
        if not as_owner:
            access.lend(connection)
        return connection

    def require_grant(self, connection: Connection, name: str, *, to_write: bool = False) -> None:
        """Raises UsageError unless the API key, if one is set, may read the collection, or write to it.

        The same whether there is such a collection or not. Without a key the caller is the owner.
        """
        api_key = self.settings.api_key
        if api_key is not None and name not in access.allowed(connection, api_key, to_write=to_write):
            right = "write to" if to_write else "read"
            raise UsageError(f"there is no collection {name} that this API key may {right}")

    def require_owner(self) -> None:
        """Raises UsageError where an API key is set: no key adds collections."""
        if self.settings.api_key is not None:
            raise UsageError("collections are added by the owner: leave RAG_API_KEY out if you are")

    def visible_collections(self, connection: Connection, *, to_write: bool = False) -> list[Collection]:
        """The collections that the API key may read, or write to; every one where none is set."""
        every = collections.list_all(connection)
        if self.settings.api_key is None:
            return every
        granted = access.allowed(connection, self.settings.api_key, to_write=to_write)
        return [collection for collection in every if collection.name in granted]

    def model(self, settings: CollectionSettings) -> EmbeddingModel:
        return embedding_model(settings.embedding_model, settings.dimensions)

    def chunk_settings(self, settings: CollectionSettings) -> ChunkSettings:
        """The collection's chunk settings; where it has none, what suits its embedding model."""
        tokens, overlap = chunk_size(settings, self.model(settings))
        return ChunkSettings(tokens, overlap, settings.embed_headings)

    def input_limit(self, model: EmbeddingModel) -> InputLimit:
        """What the model reads as one input, counted its own way."""
        tokenizer = model.name if model.provider == "local" else "cl100k"
        return InputLimit(model.max_input_tokens, self.provider(model).count, tokenizer)

    def provider(self, model: EmbeddingModel) -> Provider:
        """What embeds with this model: the same each time, for it holds connections and what it learnt of limits."""
        if model not in self._providers:
            self._providers[model] = connect_provider(
                model,
                api_key=self.settings.openai_api_key,
                base_url=self.settings.openai_base_url,
                redis_url=self.redis_url,
                requests_per_minute=self.settings.requests_per_minute,
                tokens_per_minute=self.settings.tokens_per_minute,
            )
        return self._providers[model]

    def cache(self, provider: Provider) -> EmbeddingCache:
        """The cached embeddings of this provider and model."""
        return EmbeddingCache(self.redis_url, provider.base_url, provider.model.name, provider.model.dimensions)

    def embedder(self, model: EmbeddingModel) -> tuple[Provider, EmbeddingCache]:
        """What embeds with this model, and what it embedded before."""
        provider = self.provider(model)
        return provider, self.cache(provider)

    def caches(self, connection: Connection, name: str) -> list[EmbeddingCache]:
        """The cached embeddings of every model that a collection has had, wherever it was asked."""
        sources = collections.embedding_sources(connection, name)
        return [EmbeddingCache(self.redis_url, *source) for source in sources]

    @cached_property
    def chat(self) -> ChatProvider | None:
        """What writes answers; None: they are extractive."""
        return connect_chat(
            self.settings.chat_model, api_key=self.settings.openai_api_key, base_url=self.settings.openai_base_url
        )
