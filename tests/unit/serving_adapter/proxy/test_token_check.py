"""What answers state, beside a count of our own with a tokenizer's file."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from serving_adapter.engine.token_check import TokenCheck
from serving_adapter.serving.adapter_settings import AdapterSettings
from serving_adapter.settings import SettingsError
from tests.unit.serving_adapter.proxy.test_proxy import CHAT, COMPLETION, STREAM, proxying


def tokenizer_file(folder: Path, split: Any) -> str:
    """A tokenizer whose tokens are what `split` makes of a text."""
    made = Tokenizer(models.WordLevel({"unknown": 0}, unk_token="unknown"))
    made.pre_tokenizer = split
    made.save(str(folder / "tokenizer.json"))
    return str(folder / "tokenizer.json")


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/completions", COMPLETION), ("/v1/completions", COMPLETION | STREAM), ("/v1/chat/completions", CHAT)],
)
@pytest.mark.parametrize(
    ("split", "result"),
    [(pre_tokenizers.Split(Regex("."), "isolated"), "agrees"), (pre_tokenizers.WhitespaceSplit(), "differs")],
)
def test_an_answer_is_counted_again_and_the_two_counts_are_told(
    adapter_settings: AdapterSettings, tmp_path: Path, path: str, body: dict[str, Any], split: Any, result: str
) -> None:
    async def run() -> None:
        async with proxying(adapter_settings, tokenizer=tokenizer_file(tmp_path, split)) as proxied:
            await proxied.ask(body, path)
            (event,) = await proxied.told()
            assert event.output_tokens == 4, "what is billed is what the engine states"
            while "tollbook_token_check" not in (page := await proxied.page()):
                await asyncio.sleep(0.002)
            assert f'tollbook_token_check_answers_total{{result="{result}"}} 1' in page
            assert 'tollbook_token_check_tokens_total{counted="stated"} 4' in page

    asyncio.run(run())


def test_a_file_that_is_no_tokenizer_keeps_the_proxy_from_starting(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    for path in (tmp_path / "tokenizer.json", tmp_path / "none.json"):
        with pytest.raises(SettingsError, match=path.name):
            TokenCheck(str(path))
