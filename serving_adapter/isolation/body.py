"""A request's body: what tenants may not say is refused or taken out, what the platform says is put in.

Only the top level is parsed; what lies below is passed on as the bytes it came in.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Raw

from serving_adapter.isolation.fields import REFUSED, TAKEN_OUT, VLLM, KnownFields
from serving_adapter.isolation.media import MediaRule, media_in
from serving_adapter.isolation.refusal import Refusal
from serving_adapter.isolation.routes import Route
from serving_adapter.isolation.rules import Limits, Resolved

OUTPUT_BOUND: Final = {
    Route.CHAT: ("max_completion_tokens", "max_tokens"),
    Route.COMPLETION: ("max_tokens",),
    Route.RESPONSES: ("max_output_tokens",),
    Route.EMBEDDINGS: (),
}
PROMPT: Final = {
    Route.CHAT: "messages",
    Route.COMPLETION: "prompt",
    Route.RESPONSES: "input",
    Route.EMBEDDINGS: "input",
}
_NOTHING: Final = frozenset({b"null", b"false", b"[]", b"{}", b'""'})
_decode: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_BY_KIND: Final = {kind: msgspec.json.Decoder(kind).decode for kind in (str, int, bool)}
_encode: Final = msgspec.json.Encoder().encode
_NULL: Final = Raw(b"null")

Fields = dict[str, Raw]


class Asked(msgspec.Struct, frozen=True):
    """What admission needs to know of a request."""

    fields: Fields
    model: str
    max_tokens: int | None
    n: int
    prompts: int
    prompt_bytes: int
    """Of the whole body, as any field of it may become input, but for what is no text."""
    media_parts: int
    """Images, sounds, films, files."""
    stream: bool


def parse(
    body: bytes, route: Route, limits: Limits, media_rule: MediaRule = "data", known: KnownFields = VLLM
) -> Asked:
    """A body that may be asked here. Raises Refusal (400)."""
    try:
        return _parsed(body, route, limits, media_rule, known)
    except (msgspec.MsgspecError, UnicodeError, OverflowError, RecursionError):
        raise Refusal(400, "invalid_json", "The body is not a JSON object that can be read.") from None


def _parsed(body: bytes, route: Route, limits: Limits, media_rule: MediaRule, known: KnownFields) -> Asked:
    fields = _decode(body)
    for name in REFUSED:
        if name in fields and bytes(fields[name]) not in _NOTHING:
            raise Refusal(400, "unsupported_field", f"`{name}` is not supported here.", name)
    name_of_prompt = _prompt_field(fields, route)
    fields = _known(fields, name_of_prompt, known)
    prompt = bytes(fields.get(name_of_prompt, _NULL))
    media = media_in(prompt, media_rule)
    if media.parts or _may_name_items(prompt):  # written anew: the engine reads what was read here
        fields[name_of_prompt] = Raw(_encode(_without_item_ids(msgspec.json.decode(prompt))))
    asked = Asked(
        fields=fields,
        model=_of(fields, "model", str, "") or "",
        max_tokens=_bound(fields, route),
        n=_of(fields, "n", int, 1),
        prompts=_prompts(prompt, route),
        prompt_bytes=len(body) - media.size,
        media_parts=media.parts,
        stream=bool(_of(fields, "stream", bool, False)),
    )
    for name, value, least, most in (
        ("n", asked.n, 1, limits.n), ("max_tokens", asked.max_tokens or 0, 0, limits.max_tokens),
        (name_of_prompt, asked.prompts, 1, limits.prompts), ("best_of", _of(fields, "best_of", int, 1), 1, limits.n),
    ):  # fmt: skip
        if value < least:
            raise Refusal(400, "invalid_value", f"`{name}` must be {least} at least.", name)
        if value > most:
            raise Refusal(400, "too_many", f"`{name}` may be {most} at most.", name)
    return asked


def rewritten(
    asked: Asked,
    route: Route,
    model: Resolved,
    *,
    cache_salt: str | None,
    priority: int,
    max_tokens: int | None,
    under_all_names: bool = False,
) -> bytes:
    """The body as the engine gets it. `max_tokens` None leaves the tenant's own bound, and none is above that.

    `cache_salt` None: an engine that knows neither salts nor priorities, nor stored answers. `under_all_names`: which
    of the route's names for the output bound the engine reads is not known (TGI 3.0 reads chat's `max_tokens` alone).
    """
    fields: dict[str, Any] = dict(asked.fields)
    fields["model"] = model.engine
    if cache_salt is not None:
        fields["cache_salt"] = cache_salt
        fields["priority"] = priority
        if route is Route.RESPONSES:
            fields["store"] = False
    bound = asked.max_tokens if max_tokens is None else _lower(max_tokens, asked.max_tokens)
    if bound is not None and (under_all_names or max_tokens is not None):
        names = OUTPUT_BOUND[route]
        for name in names:
            fields.pop(name, None)
        fields |= dict.fromkeys(names if under_all_names else names[:1], bound)
    return _encode(fields)


def _known(fields: Fields, name_of_prompt: str, known: KnownFields) -> Fields:
    """Those that pass. Raises Refusal for a further one that asks for something, where such are refused."""
    passed = {}
    for name, value in fields.items():
        if name in known.names or name == name_of_prompt:
            passed[name] = value
        elif known.refuse_others and value != _NULL and name not in TAKEN_OUT and name not in REFUSED:
            raise Refusal(400, "unknown_parameter", f"Unrecognized request argument: `{name[:256]}`.", name[:256])
    return passed


def _prompt_field(fields: Fields, route: Route) -> str:
    """Where the prompt is. vLLM's embeddings take messages, too: one conversation, or a list of them."""
    if route is not Route.EMBEDDINGS or bytes(fields.get("messages", _NULL)) == b"null":
        return PROMPT[route]
    if bytes(fields.get(PROMPT[route], _NULL)) != b"null":
        raise Refusal(400, "unsupported_field", "`input` and `messages` cannot be given together.", "messages")
    return "messages"


def _may_name_items(raw: bytes) -> bool:
    """Whether a content part may carry a `uuid`, which would share another tenant's cached image. Escapes hide it."""
    return b"{" in raw and (b'"uuid"' in raw or b"\\u" in raw)


def _without_item_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_item_ids(item) for key, item in value.items() if key != "uuid"}
    return [_without_item_ids(item) for item in value] if isinstance(value, list) else value


def _bound(fields: Fields, route: Route) -> int | None:
    """The output bound that the tenant gave; the first of the route's names that is there."""
    for name in OUTPUT_BOUND[route]:
        found: int | None = _of(fields, name, int, None)
        if found is not None:
            return found
    return None


def _lower(bound: int, own: int | None) -> int:
    """What admission gave is at least one, and a tenant may ask for none (`echo`)."""
    return bound if own is None else min(bound, own)


def _of(fields: Fields, name: str, kind: type[Any], default: Any) -> Any:
    raw = fields.get(name)
    if raw is None or raw == _NULL:
        return default
    try:
        return _BY_KIND[kind](raw)
    except msgspec.DecodeError:
        raise Refusal(400, "invalid_value", f"`{name}` must be of type {kind.__name__}.", name) from None


def _prompts(raw: bytes, route: Route) -> int:
    """How many prompts a request has: a list of texts, of lists of tokens, or of conversations."""
    if route not in (Route.COMPLETION, Route.EMBEDDINGS) or raw[:1] != b"[":
        return 1
    items = msgspec.json.decode(raw, type=list[Raw])
    return len(items) if items and bytes(items[0])[:1] in (b'"', b"[") else 1
