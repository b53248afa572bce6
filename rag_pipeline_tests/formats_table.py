"""The table of docs/formats.md: what each of the example files comes to. `python -m rag_pipeline_tests.formats_table`
writes it anew."""

import re
from collections.abc import Iterator
from pathlib import Path

from rag_pipeline.core.media_types import HEAD_BYTES, detect
from rag_pipeline.core.sandbox import Job, Limits, Outcome, ParserPool
from rag_pipeline_tests.shared import SHARED

PAGE = Path(__file__).resolve().parent.parent / "docs" / "formats.md"
LIMITS = Limits(seconds=120, memory_mb=1024, file_mb=100)


def jobs(folder: Path) -> Iterator[Job]:
    """A job for each file below a folder, by its path there."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                head = file.read(HEAD_BYTES)
            yield Job(path.relative_to(folder).as_posix(), path, detect(head, path.name, path), path.name)


def outcomes(folder: Path) -> dict[str, tuple[str, Outcome]]:
    """The media type and the outcome of each file below a folder."""
    listed = list(jobs(folder))
    types = {job.key: job.media_type for job in listed}
    with ParserPool(2, LIMITS) as pool:
        found = {outcome.key: outcome for outcome in pool.parse_many(listed)}
    return {key: (types[key], found[key]) for key in types}


def rows(found: dict[str, tuple[str, Outcome]]) -> list[str]:
    """The table's rows: file, media type, and the kinds of element it came to, or the reason why there are none."""
    lines = []
    for name, (media_type, outcome) in found.items():
        if outcome.parsed:
            kinds = sorted({element.kind for element in outcome.parsed.elements})
            result, why = "text", ", ".join(kinds)
            if outcome.parsed.metadata.get("encoding"):
                guessed = " (guessed)" if outcome.parsed.metadata.get("encoding_guessed") else ""
                why += f"; {outcome.parsed.metadata['encoding']}{guessed}"
        else:
            result, why = outcome.failure.reason, outcome.failure.detail
        lines.append(f"| {name} | {media_type} | {result} | {why} |")
    return lines


def main() -> None:
    """Replace the table on the page, from its head row on."""
    head = "| file | media type | result | elements, or why not |\n|---|---|---|---|\n"
    before = re.split(r"^\| file \|", PAGE.read_text(), maxsplit=1, flags=re.M)[0]
    PAGE.write_text(before + head + "\n".join(rows(outcomes(SHARED / "formats"))) + "\n")


if __name__ == "__main__":
    main()
