"""Other splitters, each as a function from a text to the spans [start, end) of its chunks, all counting cl100k
tokens."""

from collections.abc import Callable, Iterable

from rag_pipeline.core.tokens import encoding

Span = tuple[int, int]


def locate(text: str, chunks: Iterable[str]) -> list[Span]:
    """Where chunks that a splitter returned as strings lie in the text, searched in order; one that it altered is
    left out."""
    spans: list[Span] = []
    for chunk in chunks:
        start = text.find(chunk, spans[-1][0] + 1 if spans else 0)
        if start >= 0:
            spans.append((start, start + len(chunk)))
    return spans


def peers(tokens: int, overlap: int) -> dict[str, Callable[[str], list[Span]]]:
    """The splitters by name, with their own defaults but for the size and the overlap."""
    from chonkie import RecursiveChunker, SentenceChunker, TokenChunker
    from langchain_text_splitters import RecursiveCharacterTextSplitter, TokenTextSplitter
    from llama_index.core.node_parser import SentenceSplitter
    from semantic_text_splitter import TextSplitter

    name = encoding().name
    size = {"chunk_size": tokens, "chunk_overlap": overlap}
    recursive = RecursiveCharacterTextSplitter.from_tiktoken_encoder(name, **size)
    fixed = TokenTextSplitter(name, **size)
    llama = SentenceSplitter(tokenizer=encoding().encode_ordinary, **size)
    rust = TextSplitter.from_tiktoken_model("gpt-4", tokens, overlap)  # cl100k
    chonkie = {
        "chonkie TokenChunker": TokenChunker(encoding(), **size),
        "chonkie SentenceChunker": SentenceChunker(encoding(), **size),
        "chonkie RecursiveChunker (no overlap)": RecursiveChunker(encoding(), chunk_size=tokens),
    }
    found: dict[str, Callable[[str], list[Span]]] = {
        "langchain RecursiveCharacterTextSplitter": lambda text: locate(text, recursive.split_text(text)),
        "langchain TokenTextSplitter": lambda text: locate(text, fixed.split_text(text)),
        "llama-index SentenceSplitter": lambda text: locate(text, llama.split_text(text)),
        "semantic-text-splitter": lambda text: [
            (start, start + len(chunk)) for start, chunk in rust.chunk_indices(text)
        ],
    }
    for label, chunker in chonkie.items():
        found[label] = lambda text, chunker=chunker: [
            (chunk.start_index, chunk.end_index) for chunk in chunker.chunk(text)
        ]
    return found
