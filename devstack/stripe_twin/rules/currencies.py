"""Stripe's currencies: which exist, the least and the most that can be charged, and odd minor units.

Source: docs.stripe.com/currencies (presentment currencies; "Minor units in API amounts"; "Minimum and maximum
charge amounts"). Amounts are in the minor unit that the API takes.
"""

from __future__ import annotations

from devstack.stripe_twin.errors import invalid

SUPPORTED = frozenset(
    [
        "usd",
        "aed",
        "afn",
        "all",
        "amd",
        "ang",
        "aoa",
        "ars",
        "aud",
        "awg",
        "azn",
        "bam",
        "bbd",
        "bdt",
        "bgn",
        "bhd",
        "bif",
        "bmd",
        "bnd",
        "bob",
        "brl",
        "bsd",
        "bwp",
        "byn",
        "bzd",
        "cad",
        "cdf",
        "chf",
        "clp",
        "cny",
        "cop",
        "crc",
        "cve",
        "czk",
        "djf",
        "dkk",
        "dop",
        "dzd",
        "egp",
        "etb",
        "eur",
        "fjd",
        "fkp",
        "gbp",
        "gel",
        "gip",
        "gmd",
        "gnf",
        "gtq",
        "gyd",
        "hkd",
        "hnl",
        "htg",
        "huf",
        "idr",
        "ils",
        "inr",
        "isk",
        "jmd",
        "jod",
        "jpy",
        "kes",
        "kgs",
        "khr",
        "kmf",
        "krw",
        "kwd",
        "kyd",
        "kzt",
        "lak",
        "lbp",
        "lkr",
        "lrd",
        "lsl",
        "mad",
        "mdl",
        "mga",
        "mkd",
        "mmk",
        "mnt",
        "mop",
        "mur",
        "mvr",
        "mwk",
        "mxn",
        "myr",
        "mzn",
        "nad",
        "ngn",
        "nio",
        "nok",
        "npr",
        "nzd",
        "omr",
        "pab",
        "pen",
        "pgk",
        "php",
        "pkr",
        "pln",
        "pyg",
        "qar",
        "ron",
        "rsd",
        "rub",
        "rwf",
        "sar",
        "sbd",
        "scr",
        "sek",
        "sgd",
        "shp",
        "sle",
        "sos",
        "srd",
        "std",
        "szl",
        "thb",
        "tjs",
        "tnd",
        "top",
        "try",
        "ttd",
        "twd",
        "tzs",
        "uah",
        "ugx",
        "uyu",
        "uzs",
        "vnd",
        "vuv",
        "wst",
        "xaf",
        "xcd",
        "xcg",
        "xof",
        "xpf",
        "yer",
        "zar",
        "zmw",
    ]
)

_MINIMUM_CHARGE = {
    "usd": 50,
    "aed": 200,
    "aud": 50,
    "bgn": 100,
    "brl": 50,
    "cad": 50,
    "chf": 50,
    "czk": 1500,
    "dkk": 250,
    "eur": 50,
    "gbp": 30,
    "hkd": 400,
    "huf": 17500,
    "inr": 50,
    "jpy": 50,
    "mxn": 1000,
    "myr": 200,
    "nok": 300,
    "nzd": 50,
    "pln": 200,
    "ron": 200,
    "sek": 300,
    "sgd": 50,
    "thb": 1000,
}

THREE_DECIMAL = frozenset({"bhd", "jod", "kwd", "omr", "tnd"})
"""Amounts in these must end in 0 ("Three-decimal currencies")."""

TWO_DECIMALS_ALWAYS_ZERO = frozenset({"isk", "ugx"})
"""Zero-decimal currencies that the API takes with two decimals, always 00 ("Special cases")."""

_EIGHT_DIGITS = 99_999_999
_MAXIMUM_CHARGE = {"idr": 999_999_999_999}


def check_currency(currency: str) -> str:
    """The code in lower case; Stripe accepts both cases and answers in lower case."""
    lowered = currency.lower()
    if lowered not in SUPPORTED:
        raise invalid(
            f"Invalid currency: {currency}. Stripe currently supports these currencies: {', '.join(sorted(SUPPORTED))}",
            "currency",
        )
    return lowered


def minimum_charge(currency: str) -> int:
    """The least that can be charged; 1 where Stripe's page names none."""
    return _MINIMUM_CHARGE.get(currency, 1)


def maximum_charge(currency: str) -> int:
    """Eight digits; twelve for IDR."""
    return _MAXIMUM_CHARGE.get(currency, _EIGHT_DIGITS)


def check_amount(amount: int, currency: str, param: str) -> int:
    """An amount of one line: within the digits that Stripe takes, and whole in the currency's real unit."""
    limit = maximum_charge(currency)
    if abs(amount) > limit:
        raise invalid(
            f"Amount must be no more than {limit} {currency} (in the smallest currency unit).",
            param,
            "amount_too_large",
        )
    step = 10 if currency in THREE_DECIMAL else 100 if currency in TWO_DECIMALS_ALWAYS_ZERO else 1
    if amount % step:
        raise invalid(f"Invalid amount: amounts in {currency} must be divisible by {step}.", param)
    return amount
