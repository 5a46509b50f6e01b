"""The migrations are one chain, numbered as they follow each other."""

from __future__ import annotations

import re
from pathlib import Path

VERSIONS = Path(__file__).resolve().parents[2] / "migrations" / "versions"


def test_each_migration_follows_the_one_numbered_before_it() -> None:
    found = sorted(VERSIONS.glob("[0-9]*.py"))
    for before, path in zip([None, *found], found, strict=False):
        text = path.read_text()
        said = re.findall(r'^(?:down_)?revision(?:: [^=]*)? = (?:"(\d+)"|None)$', text, flags=re.M)
        assert said == [path.name[:4], before.name[:4] if before else ""], path.name
