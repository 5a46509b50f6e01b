"""Which Stripe billing talks to."""

from __future__ import annotations

import pytest

from billing.errors import NoStripeAccount
from billing.settings import StripeSettings
from billing.stripe.stripe_accounts import of_entities, secrets_of, settings_in
from serving_adapter.settings import SettingsError


def test_settings_come_from_the_environment_and_never_show_the_key() -> None:
    found = StripeSettings.from_environment({"TOLLBOOK_STRIPE_KEY": "sk_test_1", "TOLLBOOK_STRIPE_API": "http://twin"})
    assert (found.key, found.api, found.is_live) == ("sk_test_1", "http://twin", False)
    assert "sk_test_1" not in repr(found)
    assert StripeSettings.from_environment({"TOLLBOOK_STRIPE_KEY": "sk_live_1"}).is_live


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, "TOLLBOOK_STRIPE_KEY is not set"),
        ({"TOLLBOOK_STRIPE_KEY": ""}, "TOLLBOOK_STRIPE_KEY is not set"),
        ({"TOLLBOOK_STRIPE_KEY": "sk_live_1", "TOLLBOOK_STRIPE_API": "http://twin"}, "live key"),
        ({"TOLLBOOK_STRIPE_KEY": "rk_live_1", "TOLLBOOK_STRIPE_API": "http://twin"}, "live key"),
    ],
)
def test_what_would_be_dangerous_or_useless_is_refused(environment: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        StripeSettings.from_environment(environment)


KEYS = {"TOLLBOOK_STRIPE_API": "http://twin", "TOLLBOOK_STRIPE_KEY": "sk_test_1", "TOLLBOOK_STRIPE_KEY_EU": "sk_test_2"}


def test_each_legal_entity_has_the_account_of_its_key_and_shares_one_only_by_the_same_key() -> None:
    found = settings_in(KEYS | {"TOLLBOOK_STRIPE_KEY_UK_2": "sk_test_1"})
    accounts = of_entities(["eu", "default", "uk-2", "us"], found)
    assert [gateway.legal_entity for gateway in accounts.each] == ["default", "eu"]
    assert [accounts.of(entity).legal_entity for entity in ("default", "eu", "uk-2")] == ["default", "eu", "default"]
    with pytest.raises(NoStripeAccount, match="legal entity us has no account of Stripe's: set TOLLBOOK_STRIPE_KEY_US"):
        accounts.of("us")
    assert secrets_of(accounts, {"TOLLBOOK_STRIPE_WEBHOOK_SECRET_EU": "whsec_2"}) == {"default": "", "eu": "whsec_2"}


@pytest.mark.parametrize(
    ("entities", "more", "named"),
    [
        (["default", "eu"], {"TOLLBOOK_STRIPE_KEY_US": "sk_test_3"}, "TOLLBOOK_STRIPE_KEY_US is a key of no legal"),
        (["default", "eu", "EU"], {}, "would be the key of EU and of eu"),
        (["default", "eu"], {"TOLLBOOK_STRIPE_API": "", "TOLLBOOK_STRIPE_KEY_EU": "sk_live_2"}, "live and test keys"),
        ([], dict.fromkeys(KEYS, ""), "TOLLBOOK_STRIPE_KEY is not set"),
    ],
)
def test_a_key_of_nobody_of_two_or_of_another_mode_is_refused(
    entities: list[str], more: dict[str, str], named: str
) -> None:
    with pytest.raises(SettingsError, match=named):
        of_entities(entities, settings_in(KEYS | more))
