"""What of a request is no text: images, sounds, films and files, whose tokens no bytes tell. Pure."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

KEYS: Final = frozenset(
    {
        "image_url", "image_pil", "image_embeds", "input_image", "audio_url", "input_audio", "audio_embeds",
        "video_url", "input_video", "file", "input_file", "file_url", "file_data",
    }
)  # fmt: skip
"""The fields of a content part that hold it, and its types."""
_HINTS: Final = (b"image", b"audio", b"video", b"file", b"\\u")


class Media(NamedTuple):
    """How many parts, and the bytes of them in the body."""

    parts: int
    size: int


NONE: Final = Media(0, 0)


def media_in(raw: bytes) -> Media:
    """What is no text in a prompt, as JSON. Escapes in names hide nothing."""
    if b"{" not in raw or not any(hint in raw for hint in _HINTS):
        return NONE
    return _media_of(msgspec.json.decode(raw))


def _media_of(value: Any) -> Media:
    if isinstance(value, list):
        found = [_media_of(item) for item in value]
    elif isinstance(value, dict):
        held = [item for key, item in value.items() if key in KEYS]
        if held or value.get("type") in KEYS:
            return Media(1, sum(len(msgspec.json.encode(item)) for item in held))
        found = [_media_of(item) for item in value.values()]
    else:
        return NONE
    return Media(sum(each.parts for each in found), sum(each.size for each in found))
