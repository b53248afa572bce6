"""Every error the project raises on purpose: one line that names the thing and the remedy."""


class RagError(Exception):
    """Something a person can put right; its text is the one line they are shown."""


class UsageError(RagError):
    """A wrong name, key or value: refused before anything is touched."""


class ServiceError(RagError):
    """PostgreSQL or Redis cannot be reached, or is not one this project can use."""


class SourceError(RagError):
    """A collection's source cannot be listed or read."""


class ProviderError(RagError):
    """A model provider refused or did not answer."""
