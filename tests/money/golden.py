"""The bills worked by hand (`cases.yaml`), and documents in a form in which two of them can be compared."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]
_RANGE = re.compile(r"([a-z]+)(\d+)\.\.[a-z]+(\d+)")


OTHERS = Path(__file__).with_name("cases.yaml")
OURS = tuple(sorted((Path(__file__).parent / "golden").glob("*.yaml")))


@lru_cache
def cases(path: Path = OTHERS) -> list[dict[str, Any]]:
    """The cases of a file, each with `expect`: by default those that were given to the project."""
    return list(yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)["cases"])


def expected_documents(case: Mapping[str, Any]) -> list[Document]:
    """What the case expects, in comparable form."""
    return comparable([{**document, "lines": _spread(document["lines"])} for document in case["expect"]["documents"]])


def comparable(documents: Sequence[Mapping[str, Any]]) -> list[Document]:
    """The documents with their lines in order of the keys: the cases list a charge's overage before its fee."""
    return [{**document, "lines": sorted(document["lines"], key=lambda line: line["key"])} for document in documents]


def _spread(lines: Sequence[Document]) -> list[Document]:
    """`l001..l100` stands for a hundred equal lines."""
    result = []
    for line in lines:
        match = _RANGE.fullmatch(line["key"])
        if not match:
            result.append(line)
            continue
        prefix, first, last = match.groups()
        result += [{**line, "key": f"{prefix}{n:0{len(first)}d}"} for n in range(int(first), int(last) + 1)]
    return result
