"""The Merkle tree hash of RFC 6962 (section 2.1) with SHA-256, built while the leaves pass. Values in, values out.

Leaves and inner nodes are hashed with another first byte, so that no node can be passed off as a leaf.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

EMPTY_ROOT: Final = hashlib.sha256(b"").digest()


class MerkleTree:
    """A tree that grows by one leaf at a time and keeps only the roots of its full subtrees: log₂(leaves) hashes."""

    def __init__(self) -> None:
        self.leaves = 0
        self._full: list[bytes] = []

    def add(self, leaf: bytes) -> None:
        """Append a leaf: its data, not its hash."""
        node = hashlib.sha256(b"\0" + leaf).digest()
        carried = self.leaves
        while carried & 1:
            node = _node(self._full.pop(), node)
            carried >>= 1
        self._full.append(node)
        self.leaves += 1

    @property
    def root(self) -> bytes:
        """The tree's hash, 32 bytes; more leaves may follow."""
        if not self._full:
            return EMPTY_ROOT
        *others, root = self._full
        for left in reversed(others):
            root = _node(left, root)
        return root


def merkle_root(leaves: Iterable[bytes]) -> bytes:
    """The hash of a tree over these leaves."""
    tree = MerkleTree()
    for leaf in leaves:
        tree.add(leaf)
    return tree.root


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()
