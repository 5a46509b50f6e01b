"""What binds an evidence pack together: contents to approvals, invoices to contents, a journal's end to its book."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from itertools import zip_longest
from typing import Any, Final

from reconciliation.agreement import Check, compare
from reconciliation.close.close_store import BOOK, content_hash
from reconciliation.close.evidence.pack import Pack
from reconciliation.close.evidence.writing import rated_table, usage_table
from reconciliation.close.signatures import as_signed
from reconciliation.close.states import Event, State
from reconciliation.comparison import Value

SIGNED: Final = frozenset({State.APPROVED, State.FINALIZED, State.CLOSED})
"""States of an account that another person has signed."""
ISSUED: Final = frozenset({State.FINALIZED, State.CLOSED})
"""States of an account all of whose invoices are issued."""


def contents(pack: Pack) -> Check:
    """Each account's content has the hash that its approval signed; what went on after an approval has one."""
    signed = {each["billing_account"]: str(each["content_hash"]) for each in pack.signed("approvals.jsonl")}
    there: dict[str, Value] = {}
    with (pack.content / "accounts.jsonl").open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            name = json.loads(line)["billing_account"]
            if name in signed:  # of what nobody has approved yet there is nothing to compare
                there[name] = content_hash(line.removesuffix("\n"))
    said: dict[str, Value] = dict(signed)
    for name, steps in _steps(pack).items():
        if _state(steps) in SIGNED:
            approvals = [step["detail"]["content_hash"] for step in steps if step["event"] == Event.APPROVE]
            said[f"{name}/approval"] = approvals[-1] if approvals else "no approval"
            there |= {f"{name}/approval": signed[name]} if name in signed else {}
    said["how many"], there["how many"] = len({each["billing_account"] for each in pack.accounts}), len(pack.accounts)
    return compare("contents are what was signed", "approvals", "accounts", said, there)


def invoices(pack: Pack) -> Check:
    """Invoices are the drafts that were approved, all of them once they are issued, and each is the sum of its lines.

    In minor units.
    """
    said: dict[str, Value] = {}
    summed: dict[str, Value] = {}
    steps = _steps(pack)
    for account in pack.accounts:
        done = _state(steps.get(account["billing_account"], ())) in ISSUED
        said |= {f"{each['invoice_id']}/issued": "yes" for each in account["documents"] if done}
    drafts = {document["invoice_id"]: document for account in pack.accounts for document in account["documents"]}
    issued = list(pack.of("invoices.jsonl"))
    said["how many"], summed["how many"] = len({each["invoice_id"] for each in issued}), len(issued)
    for document in issued:
        key = document["invoice_id"]
        within = sum(row["amount"] for row in document["tax"]) if document["tax_mode"] == "inclusive" else 0
        said[f"{key}/net"] = document["net"]
        summed[f"{key}/net"] = sum(line["amount"] for line in document["lines"]) - within
        said[f"{key}/total"] = document["total"]
        summed[f"{key}/total"] = document["net"] + sum(row["amount"] for row in document["tax"])
        if f"{key}/issued" in said:
            summed[f"{key}/issued"] = "yes"
        draft = drafts.get(key, {})
        account = draft.get("billing_account")
        if any(step["event"] == Event.APPROVE for step in steps.get(account, ())):
            said[f"{key}/as approved"] = json.dumps(draft, sort_keys=True)
        summed[f"{key}/as approved"] = json.dumps({name: document.get(name) for name in draft}, sort_keys=True)
    return compare("invoices are what was approved", "approved", "issued", said, summed)


def before(pack: Pack) -> Check:
    """What was issued before an account was reopened is what was signed then."""
    issued = {each["invoice_id"]: each for each in pack.of("invoices.jsonl")}
    return as_signed(pack.signatures_before, pack.signed_contents, issued)


def books(pack: Pack, ends: Mapping[str, tuple[int, bytes]]) -> Check:
    """Each closed book's journal ends where the book was closed; or, of accounts that were parked then, where the last
    of them was. It goes on while one of these is under way. `ends`: of each journal's chain, where it is whole."""
    said: dict[str, Value] = {}
    there: dict[str, Value] = {}
    for entity, closed in _closed_at(pack).items():
        hashes = {line["position"]: line["chain_hash"] for line in pack.journal(entity) if "entry" in line}
        for name, position, chain_hash in closed:
            said[name] = f"{position} {chain_hash}"
            if entity in ends and position in hashes:
                there[name] = f"{position} {hashes[position]}"
        if entity in ends and not _goes_on(pack, entity):
            said[f"{entity}/end"], there[f"{entity}/end"] = max(at for _, at, _ in closed), ends[entity][0]
    return compare("journals end where their books were closed", "book's close", "journal", said, there)


def _closed_at(pack: Pack) -> dict[str, list[tuple[str, int, str]]]:
    """By legal entity how far the journal was when its book was closed, and each account that was parked then: a name,
    the position, its hash."""
    found: dict[str, list[tuple[str, int, str]]] = {}
    for step in pack.transitions:
        entity, detail = step["legal_entity"], step["detail"]
        if step["event"] == Event.CLOSE and "position" in detail:
            name = "/".join(filter(None, (entity, step["billing_account"])))
            found.setdefault(entity, []).append((name, int(detail["position"]), detail["chain_hash"]))
    return found


def _goes_on(pack: Pack, entity: str) -> bool:
    """Whether an account was let go on after the book was closed, and is not closed."""
    last: dict[str, str] = {}
    closed = False
    for step in pack.transitions:
        if step["legal_entity"] == entity:
            closed = closed or step["billing_account"] == BOOK
            last |= {step["billing_account"]: step["to"]} if closed else {}
    return any(state != State.CLOSED for state in last.values())


def waivers(pack: Pack) -> Check:
    """What gates call waived, a person of that name has waived."""
    said: dict[str, Value] = {}
    there = {_seen(each["gate"], each): each["actor"] for each in pack.of("waivers.jsonl")}
    for result in pack.of("gates.jsonl"):
        said |= {_seen(result["gate"], e): e["waived_by"] for e in result["differences"] if e["waived_by"]}
    found: dict[str, Value] = {key: there[key] for key in said if key in there}
    return compare("what is waived has its waiver", "gates", "waivers", said, found)


def _seen(gate: str, found: Mapping[str, Any]) -> str:
    return f"{gate}/{found['key']}: {found['left']} / {found['right']}"


def tables(pack: Pack) -> Check:
    """The tables are those of the accounts."""
    said: dict[str, Value] = {}
    there: dict[str, Value] = {}
    for name, table in (("usage.csv", usage_table), ("rated_lines.csv", rated_table)):
        ours, theirs = same_lines(name, table(pack.accounts), (pack.content / name).read_bytes())
        said |= ours
        there |= theirs
    return compare("tables are those of the accounts", "accounts", "tables", said, there)


def same_lines(name: str, wanted: bytes, there: bytes) -> tuple[dict[str, Value], dict[str, Value]]:
    """Two texts as values to compare: `name`, how many lines; of those that differ, `name/line 7`."""
    texts = wanted.decode().split("\n"), there.decode().split("\n")
    ours: dict[str, Value] = {name: len(texts[0])}
    theirs: dict[str, Value] = {name: len(texts[1])}
    for number, (left, right) in enumerate(zip_longest(*texts, fillvalue=""), start=1):
        if left != right:
            ours[f"{name}/line {number}"], theirs[f"{name}/line {number}"] = left, right
    return ours, theirs


def _steps(pack: Pack) -> dict[str, list[Mapping[str, Any]]]:
    """The steps of each account, in order."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for step in pack.transitions:
        if step["billing_account"] != BOOK:
            found.setdefault(step["billing_account"], []).append(step)
    return found


def states(pack: Pack) -> dict[str, State]:
    """Where each account stands; one that is parked, where it was parked."""
    return {name: _state(steps) for name, steps in _steps(pack).items()}


def _state(steps: Collection[Mapping[str, Any]]) -> State:
    """Where an account stands; parked, where it was parked."""
    if not steps:
        return State.OPEN
    (*_, last) = steps
    return State(last["from"] if last["event"] == Event.PARK else last["to"])
