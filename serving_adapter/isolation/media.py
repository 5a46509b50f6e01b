"""What of a request is no text: images, sounds, films and files, whose tokens no bytes tell. Pure.

Engines fetch the addresses that a part names, from within the platform's network: which they may is the rules' to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

from serving_adapter.isolation.refusal import Refusal

KEYS: Final = frozenset(
    {
        "image_url", "image_pil", "input_image", "audio_url", "input_audio", "video_url", "input_video", "file",
        "input_file", "file_url", "file_data", "file_id",
    }
)  # fmt: skip
"""The fields of a content part that hold it, and its types."""
_EMBEDS: Final = "_embeds"
"""How those end that hold tensors, with which a tenant can end the engine (vLLM's `--enable-mm-embeds`)."""
_HINTS: Final = (b"image", b"audio", b"video", b"file", b"_embeds", b"\\u")
_ABOUT: Final = frozenset({"type", "text", "detail", "format", "filename", "mime_type"})
"""Fields of a part that are no content."""
_INLINE: Final = frozenset({"data", "file_data"})
"""Content in base64, without a scheme before it."""
_ADDRESS: Final = re.compile(r"https?://(?P<host>[A-Za-z0-9.-]+)(:\d{1,5})?([/?][^\s\\\x00-\x1f\x7f]*)?", re.ASCII)
"""Those that every reader takes apart alike: no user, no backslash, no blank."""

MediaRule = Literal["none", "data"] | list[Annotated[str, Meta(pattern=r"^[a-z0-9.-]+$(?!\n)")]]
"""`data`: what is in the request itself. A list: also what lies at addresses of these hosts."""


class Media(NamedTuple):
    """How many parts, and the bytes of them in the body."""

    parts: int
    size: int


NONE: Final = Media(0, 0)
Held = list[tuple[str, Any]]


def media_in(raw: bytes, rule: MediaRule = "data") -> Media:
    """What is no text in a prompt, as JSON. Escapes in names hide nothing. Raises Refusal (400)."""
    if b"{" not in raw or not any(hint in raw for hint in _HINTS):
        return NONE
    found = list(_parts(msgspec.json.decode(raw)))
    for held in found:
        _check(held, rule)
    return Media(len(found), sum(len(msgspec.json.encode(item)) for held in found for _, item in held))


def _parts(value: Any) -> Iterator[Held]:
    """What each part holds, however deep it lies."""
    if isinstance(value, list):
        for item in value:
            yield from _parts(item)
    elif isinstance(value, dict):
        held = {name: item for name, item in value.items() if _is_media(name)}
        is_part = bool(held)
        if not held and _is_media(value.get("type")):
            held, is_part = {name: item for name, item in value.items() if name not in _ABOUT}, True
        if is_part:
            yield list(held.items())
        for name, item in value.items():
            if name not in held:
                yield from _parts(item)


def _is_media(name: Any) -> bool:
    return isinstance(name, str) and (name in KEYS or name.endswith(_EMBEDS))


def _check(held: Held, rule: MediaRule) -> None:
    """Raises Refusal."""
    if rule == "none":
        raise _refusal("Images, sounds, films and files are not taken here.")
    for name, text in _texts(held):
        if name.endswith(_EMBEDS):
            raise _refusal(f"`{name}` is not supported here.")
        if name == "file_id":
            raise _refusal("Files are not kept here: send the content itself, as a data: URL.")
        if name in _ABOUT or text[:5].lower() == "data:" or (name in _INLINE and ":" not in text):
            continue
        address = _ADDRESS.fullmatch(text)
        if rule == "data" or address is None:
            raise _refusal("Images, sounds, films and files are taken as data: URLs here, and not from elsewhere.")
        if address["host"].lower() not in rule:
            raise _refusal(f"Nothing is fetched from {address['host'][:256]} here.")


def _texts(held: Held) -> Iterator[tuple[str, str]]:
    """Each text, with the name of the field that it is in."""
    for name, item in held:
        if isinstance(item, str):
            yield name, item
        elif isinstance(item, dict):
            yield from _texts([(key if not name.endswith(_EMBEDS) else name, inner) for key, inner in item.items()])
        elif isinstance(item, list):
            yield from _texts([(name, inner) for inner in item])


def _refusal(why: str) -> Refusal:
    return Refusal(400, "media_not_allowed", why, "messages")
