"""Bodies and names: what reaches the engine of what a tenant says."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving_adapter.isolation.body import parse, rewritten
from serving_adapter.isolation.fields import TAKEN_OUT, of_engine_behind
from serving_adapter.isolation.media import KEYS, MediaRule
from serving_adapter.isolation.refusal import Refusal
from serving_adapter.isolation.routes import Route
from serving_adapter.isolation.rules import Limits, Resolved, Resolver, Rules, salt

MODEL = Resolved("fast", "tiny", "tiny", "r1", "", "")
LIMITS = Limits(prompts=3, n=4, max_tokens=100)


def through(
    body: dict[str, Any],
    route: Route = Route.COMPLETION,
    max_tokens: int | None = None,
    *,
    under_all_names: bool = False,
) -> dict[str, Any]:
    asked = parse(json.dumps(body).encode(), route, LIMITS)
    sent_on = rewritten(
        asked, route, MODEL, cache_salt="salt", priority=7, max_tokens=max_tokens, under_all_names=under_all_names
    )
    found: dict[str, Any] = json.loads(sent_on)
    return found


def test_what_the_platform_says_replaces_what_a_tenant_says() -> None:
    sent = dict.fromkeys(TAKEN_OUT, "theirs") | {"model": "fast", "prompt": "a", "temperature": 0.5}
    assert through(sent) == {
        "model": "tiny", "prompt": "a", "temperature": 0.5, "cache_salt": "salt", "priority": 7
    }  # fmt: skip


OTHERS_STATE: dict[str, Any] = {
    "lora_path": "tenant_b", "session_params": {"id": "b"}, "rid": "b", "extra_key": "b", "adapter_id": "b",
    "custom_logit_processor": "code", "lora": [{"id": 0, "scale": 1}], "id_slot": 0, "cache_prompt": False,
}  # fmt: skip
"""SGLang's, llama.cpp's, TGI's."""


def test_a_field_that_nobody_here_knows_is_taken_out_before_vllm_and_refused_before_another_engine() -> None:
    body = {"model": "fast", "prompt": "a"}
    assert through(body | OTHERS_STATE) == {"model": "tiny", "prompt": "a", "cache_salt": "salt", "priority": 7}
    known = of_engine_behind(["grammar"])
    for name, value in OTHERS_STATE.items():
        with pytest.raises(Refusal) as refused:
            parse(json.dumps(body | {name: value}).encode(), Route.COMPLETION, LIMITS, known=known)
        assert (refused.value.status, refused.value.code, refused.value.param) == (400, "unknown_parameter", name)
    taken = body | {"grammar": "g", "top_k": 3, "seed": 1, "store": True, "background": False, "rid": None}
    asked = parse(json.dumps(taken).encode(), Route.COMPLETION, LIMITS, known=known)
    assert set(asked.fields) == {"model", "prompt", "grammar", "top_k", "seed"}
    with pytest.raises(Refusal, match="messages"):
        parse(json.dumps(body | {"messages": []}).encode(), Route.COMPLETION, LIMITS, known=known)
    for never in ("cache_salt", "prompt_embeds"):
        with pytest.raises(ValueError, match=never):
            of_engine_behind([never])


def content(part: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": [part]}]}).encode()


URL = "https://images.example/a.png?x=1"
NOT_DATA: list[Any] = [
    {"type": "image_url", "image_url": {"url": URL}}, {"type": "image_url", "image_url": URL}, {"image_url": URL},
    {"type": "video_url", "video_url": {"url": "http://169.254.169.254/latest"}},
    {"type": "audio_url", "audio_url": {"url": "file:///etc/passwd"}},
    {"type": "input_image", "image_url": "/etc/passwd"}, {"type": "input_file", "file_url": URL},
    {"type": "file", "file": {"file_id": "file-1"}}, {"type": "file", "file": {"file_data": URL}},
    {"type": "text", "text": "x", "image_url": {"url": URL}}, {"type": "image_url", "url": URL},
    {"file": {}, "more": [{"type": "image_url", "image_url": {"url": URL}}]}, {"type": ["image"], "image_url": URL},
    {"type": "image_embeds", "image_embeds": "AAAA"}, {"type": "video_embeds", "video_embeds": {"x": "data:"}},
]  # fmt: skip


@pytest.mark.parametrize("part", NOT_DATA)
def test_an_engine_is_sent_to_no_address(part: Any) -> None:
    with pytest.raises(Refusal) as refused:
        parse(content(part), Route.CHAT, LIMITS)
    assert (refused.value.status, refused.value.code) == (400, "media_not_allowed")


@settings(max_examples=50)
@given(
    st.recursive(
        st.just(NOT_DATA[0]),
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=2),
            st.dictionaries(st.sampled_from([*sorted(KEYS), "type", "text", "detail", "data", "x"]), inner, min_size=1),
            st.fixed_dictionaries({"type": st.sampled_from(["image_url", "text"]), "text": inner}),
        ),
    )
)
def test_an_address_is_found_however_deep_it_lies(part: Any) -> None:
    with pytest.raises(Refusal, match="data: URLs"):
        parse(content(part), Route.CHAT, LIMITS)


@pytest.mark.parametrize(
    ("rule", "url", "allowed"),
    [
        ("data", "data:image/png;base64,AAAA", True),
        ("none", "data:image/png;base64,AAAA", False),
        (["images.example"], "DATA:image/png;base64,AAAA", True),
        (["images.example"], URL, True),
        (["images.example"], "https://Images.Example:8443/a", True),
        (["images.example"], "https://images.example.evil/a", False),
        (["images.example"], "https://evil\\@images.example/a", False),
        (["images.example"], "https://images.example\\.evil/a", False),
        (["images.example"], "https://images.example@evil/a", False),
        (["images.example"], "https://evil#@images.example/", False),
        (["images.example"], " https://images.example/a", False),
        (["images.example"], "ftp://images.example/a", False),
        ([], URL, False),
    ],
)
def test_media_come_from_where_the_rules_say(rule: MediaRule, url: str, allowed: bool) -> None:
    body = content({"type": "image_url", "image_url": {"url": url, "detail": "low"}})
    if allowed:
        assert parse(body, Route.CHAT, LIMITS, rule).media_parts == 1
    else:
        with pytest.raises(Refusal, match="here"):
            parse(body, Route.CHAT, LIMITS, rule)


def test_content_within_a_request_passes_and_text_that_names_an_address_is_text() -> None:
    for part, parts in (
        ({"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}, 1),
        ({"type": "file", "file": {"file_data": "data:application/pdf;base64,AA", "filename": "a: b.pdf"}}, 1),
        ({"type": "text", "text": f"what does the image at {URL} show? file_id"}, 0),
    ):
        assert parse(content(part), Route.CHAT, LIMITS, "data").media_parts == parts


def test_of_a_name_that_is_there_twice_the_engine_gets_what_was_looked_at() -> None:
    twice = b'{"messages":[{"content":[{"image_url":{"url":"http://evil"},"image_url":{"url":"data:,"}}]}]}'
    assert b"evil" not in bytes(parse(twice, Route.CHAT, LIMITS).fields["messages"])


def test_a_name_written_with_escapes_or_twice_is_still_that_name() -> None:
    body = b'{"model":"fast","prompt":"a","cache_s\\u0061lt":"theirs","priority":1,"priority":2}'
    asked = parse(body, Route.COMPLETION, LIMITS)
    found = rewritten(asked, Route.COMPLETION, MODEL, cache_salt="s", priority=7, max_tokens=None)
    assert found.count(b"salt") == 1
    assert json.loads(found)["cache_salt"] == "s"
    assert found.count(b"priority") == 1


@pytest.mark.parametrize(
    ("route", "sent", "names"),
    [
        (Route.CHAT, {"max_tokens": 50, "max_completion_tokens": 60}, ["max_completion_tokens", "max_tokens"]),
        (Route.COMPLETION, {"max_tokens": 50}, ["max_tokens"]),
        (Route.COMPLETION, {}, ["max_tokens"]),
        (Route.RESPONSES, {"max_output_tokens": 50}, ["max_output_tokens"]),
    ],
)
def test_a_bound_that_admission_gave_is_the_only_one_under_each_name_an_engine_may_read(
    route: Route, sent: dict[str, Any], names: list[str]
) -> None:
    found = through({"model": "fast", **sent}, route, max_tokens=20)
    assert {name: value for name, value in found.items() if "tokens" in name} == {names[0]: 20}
    found = through({"model": "fast", **sent}, route, max_tokens=20, under_all_names=True)
    assert {name: value for name, value in found.items() if "tokens" in name} == dict.fromkeys(names, 20)


def test_a_tenant_that_wants_no_tokens_says_so_to_the_engine_though_one_was_reserved() -> None:
    assert through({"model": "fast", "max_tokens": 0, "echo": True}, max_tokens=1)["max_tokens"] == 0


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_tenants_own_bound_is_one_under_each_name_before_an_engine_that_is_not_known(name: str) -> None:
    sent = {"model": "fast", "messages": [], name: 50}
    assert through(sent, Route.CHAT)[name] == 50
    found = through(sent, Route.CHAT, under_all_names=True)
    assert (found["max_tokens"], found["max_completion_tokens"]) == (50, 50)
    both = sent | {"max_completion_tokens": 1, "max_tokens": 90}
    assert through(both, Route.CHAT, under_all_names=True)["max_tokens"] == 1, "what was admitted"
    del sent[name]
    assert "max_tokens" not in through(sent, Route.CHAT, under_all_names=True)


def test_ids_of_images_are_taken_out_however_they_are_written() -> None:
    body = (
        b'{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","uu\\u0069d":"x","image_url":{}}]}]}'
    )
    found = json.loads(
        rewritten(parse(body, Route.CHAT, LIMITS), Route.CHAT, MODEL, cache_salt="s", priority=0, max_tokens=None)
    )
    assert found["messages"][0]["content"] == [{"type": "image_url", "image_url": {}}]


def test_messages_of_embeddings_are_prompts_as_any_other() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:"}, "uuid": "theirs"}
    talk = [{"role": "user", "content": [image, {"type": "text", "text": "what?"}]}]
    for messages, prompts in ((talk, 1), ([talk, talk], 2)):
        asked = parse(json.dumps({"messages": messages, "input": None}).encode(), Route.EMBEDDINGS, LIMITS)
        assert (asked.prompts, asked.media_parts) == (prompts, prompts)
        sent = rewritten(asked, Route.EMBEDDINGS, MODEL, cache_salt="s", priority=7, max_tokens=None)
        assert b"uuid" not in sent
        assert json.loads(sent)["priority"] == 7
    for refused in ({"messages": [talk] * 4}, {"messages": talk, "input": "a"}):
        with pytest.raises(Refusal):
            parse(json.dumps(refused).encode(), Route.EMBEDDINGS, LIMITS)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b'"x"', b'{"model":1,"prompt":"a"}', b'{"n":"3"}', b'{"n":5}',
        b'{"max_tokens":101}', b'{"best_of":9}',
        b'{"max_tokens":-1}', b'{"prompt":["a","b","c","d"]}', b'{"stream":"yes"}', b'{"use_beam_search":true}',
        b'{"prompt_embeds":"AAAA"}', b'{"background":true}', b"\xff", b'{"n":-1000000,"max_tokens":100}', b'{"n":0}',
        b'{"best_of":-1}', b'{"prompt":[{"uuid":"\xff"}]}', b'{"prompt":[{"uuid":1e999}]}',
        b'{"prompt":' + b'[{"\\u0061":1},' * 50_000 + b"1" + b"]" * 50_000 + b"}",
    ],
)  # fmt: skip
def test_what_cannot_be_metered_or_read_is_refused(body: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        parse(body, Route.COMPLETION, LIMITS)
    assert refused.value.status == 400


def test_prompts_are_counted_as_the_engine_will_run_them() -> None:
    for prompt, number in (("a", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1, 2], [3]], 2), ([], 1)):
        assert parse(json.dumps({"prompt": prompt}).encode(), Route.COMPLETION, LIMITS).prompts == number


RULES: dict[str, Any] = {
    "models": {
        "chat": [{"engine": "old", "revision": "r1", "share": 90}, {"engine": "new", "revision": "r2", "share": 10}]
    },
    "adapters": [{"tenant_id": "a", "name": "fr", "engine": "a--fr--1", "base": "old", "revision": "7"}],
}  # fmt: skip


def test_an_alias_shares_its_requests_between_two_revisions_and_a_request_keeps_its_own() -> None:
    resolver = Resolver(msgspec.convert(RULES, Rules))
    found = [resolver.resolve("a", "chat", f"q{i}") for i in range(2000)]
    shares = Counter((model.engine, model.model_revision) for model in found)
    assert shares[("old", "r1")] + shares[("new", "r2")] == 2000
    assert 130 < shares[("new", "r2")] < 280
    assert found[:50] == [resolver.resolve("a", "chat", f"q{i}") for i in range(50)]


def test_an_adapter_is_its_tenants_alone() -> None:
    resolver = Resolver(msgspec.convert(RULES, Rules))
    assert resolver.resolve("a", "fr", "q") == Resolved("fr", "a--fr--1", "old", "r1", "fr", "7")
    for tenant, asked in (("b", "fr"), ("a", "a--fr--1"), ("a", "old"), ("b", "")):
        with pytest.raises(Refusal) as refused:
            resolver.resolve(tenant, asked, "q")
        assert refused.value.status == 404


@pytest.mark.parametrize("name", ["text", "image", "chat", "../fr", "a/b", ".fr", ""])
def test_an_adapter_that_would_reach_others_cannot_be_configured(name: str) -> None:
    adapter = RULES["adapters"][0] | {"name": name}
    with pytest.raises((msgspec.ValidationError, ValueError)):
        msgspec.convert(RULES | {"adapters": [adapter]}, Rules)


def test_each_tenant_has_its_own_salt() -> None:
    assert salt(b"k", "a") == salt(b"k", "a")
    assert len({salt(b"k", "a"), salt(b"k", "b"), salt(b"l", "a")}) == 3
