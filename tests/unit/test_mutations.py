"""Every deliberate error can still be made: what it changes is where it says, once."""

from __future__ import annotations

import pytest

from tests.mutations import ledger, rating, streams
from tests.mutations.mutation import REPOSITORY, Mutation


@pytest.mark.parametrize(
    "mutation", [*rating.MUTATIONS, *ledger.MUTATIONS, *streams.MUTATIONS], ids=lambda mutation: mutation.what
)
def test_a_deliberate_error_is_not_stale(mutation: Mutation) -> None:
    assert (REPOSITORY / mutation.file).read_text().count(mutation.good) == 1
    assert (REPOSITORY / mutation.test.partition("::")[0]).exists()
