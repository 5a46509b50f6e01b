"""Which books are in no stored state yet, and the making of such states, a slice at a time. Pure.

A rebuild reads the stored state of each group of tenants and the journal after it. A state is that as of one batch of
the journal, although it is made while further entries arrive: a request that is about to change is written down first
(copy on write). So nobody waits for a tenant with hundreds of thousands of requests in flight.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from streams.quotas import book_state
from streams.quotas.book import TenantBook
from streams.quotas.held import Held
from streams.quotas.journal import MadeState

SLICE: Final = 50
"""Requests that are written down in one turn: a tenth of a millisecond."""


class GroupState:
    """The state of a group as of a batch, in the making."""

    def __init__(self, group: int, members: Iterable[Held]) -> None:
        self.group = group
        self.as_of: int | None = None
        """The batch with the last entries that are in it; None while that batch is written."""
        self.since: int | None = None
        """The first batch after it that has entries of the group."""
        self._made: list[bytes] = []
        self._left: list[tuple[TenantBook, list[str]]] = []
        for held in members:
            held.book.state_no += 1
            self._made.append(book_state.encoded(book_state.state_of(held.book, with_requests=False)))
            self._left.append((held.book, list(held.book.requests)))

    @property
    def is_made(self) -> bool:
        """Whether all of it is written down."""
        return not self._left

    def before_change(self, book: TenantBook, request_id: str) -> None:
        """A request is about to change: as it is now it belongs into the state."""
        if self._left:
            self._write(book, [request_id])

    def make(self) -> None:
        """Write down the next slice."""
        room = SLICE
        while self._left and room > 0:
            book, requests = self._left[-1]
            due = requests[-room:]
            del requests[-room:]
            room -= max(len(due), 1)
            self._write(book, due)
            if not requests:
                self._left.pop()

    def stored(self) -> bytes:
        """All of it as it is stored."""
        return book_state.joined(self._made)

    def _write(self, book: TenantBook, request_ids: Iterable[str]) -> None:
        """Write down those that are not yet. What is forgotten meanwhile, or confirmed and over, is left out: if it is
        told again, the database knows it."""
        kept = {}
        for request_id in request_ids:
            request = book.requests.get(request_id)
            if request is None or request.state_no == book.state_no:
                continue
            request.state_no = book.state_no
            if not request.is_over:
                kept[request_id] = request
        if kept:
            self._made.append(book_state.encoded(book_state.more_of(book.tenant_id, kept)))


class StoredStates:
    """The groups of a shard, and how far their stored states reach."""

    def __init__(self) -> None:
        self._groups: dict[int, list[Held]] = defaultdict(list)
        self._changed: set[int] = set()
        """Groups with entries that are not in a batch yet."""
        self._dirty: dict[int, int] = {}
        """Groups with entries that are in no stored state, and the first batch that has them."""
        self._newest = 0
        self._beginning: GroupState | None = None
        self._making: GroupState | None = None
        self._unstored: dict[int, GroupState] = {}

    def add(self, held: Held) -> None:
        """A tenant is new here."""
        self._groups[held.group].append(held)

    def before_change(self, held: Held, request_id: str) -> None:
        """An entry is about to be applied."""
        self._changed.add(held.group)
        if self._making is not None and self._making.group == held.group:
            self._making.before_change(held.book, request_id)

    def begin(self) -> GroupState | None:
        """Begin the state of the group that waits longest, as of all that is applied; None if one is being made, or
        none waits. A batch with what is applied and not written yet must be cut in the same turn."""
        group = next((each for each in self._dirty if each not in self._unstored), None)
        if self._making is not None or group is None:
            return None
        self._making = self._beginning = GroupState(group, self._groups[group])
        self._unstored[group] = self._making
        return self._making

    def cut(self) -> set[int]:
        """All entries go into a batch: which groups they are of."""
        changed, self._changed = self._changed, set()
        return changed

    def nothing_to_cut(self) -> None:
        """What was begun is as of the newest batch."""
        if self._beginning is not None:
            self._beginning.as_of, self._beginning = self._newest, None

    def written(self, no: int, changed: Iterable[int]) -> None:
        """A batch with entries of these groups is durable under this number."""
        self._newest = no
        if self._beginning is not None:
            self._beginning.as_of, self._beginning = no, None
        for group in changed:
            self.note(group, no)

    def note(self, group: int, no: int) -> None:
        """A batch has entries of a group."""
        self._newest = max(no, self._newest)
        self._dirty.setdefault(group, no)
        state = self._unstored.get(group)
        if state is not None and state.since is None and state.as_of is not None and no > state.as_of:
            state.since = no

    def touch(self, group: int) -> None:
        """Books of a group have changed without an entry: as of the newest batch they are to be written down anew."""
        self._dirty.setdefault(group, self._newest)
        state = self._unstored.get(group)
        if state is not None and state.since is None:
            state.since = self._newest

    def read(self, no: int) -> None:
        """A batch was read, whosever entries are in it."""
        self._newest = max(no, self._newest)

    def make(self) -> MadeState | None:
        """Go on with the state that is being made, until it can be stored."""
        making = self._making
        if making is None:
            return None
        making.make()
        if not making.is_made or making.as_of is None:
            return None
        self._making = None
        return MadeState(making.group, making.as_of, making.stored())

    @property
    def is_idle(self) -> bool:
        """Whether no state is being made."""
        return self._making is None

    def kept(self, group: int) -> None:
        """A group's state is stored."""
        state = self._unstored.pop(group)
        self._dirty.pop(group, None)
        if state.since is not None:
            self._dirty[group] = state.since

    def not_kept(self, group: int) -> None:
        """It could not be stored: it is made anew some time."""
        self._unstored.pop(group, None)

    def needed_from(self) -> int:
        """The first batch that a rebuild would need."""
        return min(self._dirty.values(), default=self._newest + 1)
