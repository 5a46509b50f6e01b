"""Events of a gateway's log, by a mapping, and of a peer's export, which has them as they are."""

from __future__ import annotations

import yaml

from reconciliation.errors import MappingInvalid
from reconciliation.replay.log_mapping import LogMapping, mapping_from
from reconciliation.replay.material import Found, Material, NotMappable
from reconciliation.replay.stored_files import StoredFiles


def mapping_of(text: str, name: str) -> LogMapping:
    """A mapping from the text of its file. Raises MappingInvalid."""
    try:
        return mapping_from(yaml.safe_load(text), name)
    except yaml.YAMLError as error:
        raise MappingInvalid(f"{name}: no YAML: {error}") from None


def logged(where: str, mapping: LogMapping) -> Material:
    """An event for each line that is about a metered request. Raises MaterialUnreadable."""
    files = StoredFiles(where)
    for name in files.names():
        told = files.told(name)
        for number, line, row in mapping.rows(files.lines(name)):
            origin = f"{told}:{number}"
            if isinstance(row, str):
                yield NotMappable(origin, row, line)
                continue
            if not mapping.concerns(row):
                continue
            try:
                yield Found(origin, mapping.event_of(row))
            except ValueError as error:
                yield NotMappable(origin, str(error), line)


def exported(where: str) -> Material:
    """Usage events as JSON lines, as they are. Raises MaterialUnreadable."""
    files = StoredFiles(where)
    for name in files.names():
        told = files.told(name)
        for number, line in files.lines(name):
            yield Found(f"{told}:{number}", line)
