"""Spreading a rounded total: it adds up, and no line is a whole quantum away from exact. Pieces of a line add up."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from billing.money import Rounding, quantise_line, quantise_pieces, round_to_quantum, spread, total

QUANTA = st.sampled_from([Decimal("0.01"), Decimal("0.010"), Decimal(1), Decimal("0.001")])
AMOUNTS = st.integers(-(10**18), 10**18).map(lambda pico: Decimal(pico).scaleb(-12))
LINES = st.dictionaries(st.text(min_size=1, max_size=8), AMOUNTS, max_size=40)


@given(lines=LINES, quantum=QUANTA, rounding=st.sampled_from(Rounding))
def test_the_shares_sum_to_the_total_and_stay_within_one_quantum(
    lines: dict[str, Decimal], quantum: Decimal, rounding: Rounding
) -> None:
    rounded = round_to_quantum(total(lines.values()), quantum, rounding)
    shares = spread(rounded, lines, quantum)
    assert shares.keys() == lines.keys()
    assert sum(map(Fraction, shares.values())) == Fraction(rounded)
    for key, share in shares.items():
        assert abs(Fraction(share) - Fraction(lines[key])) < Fraction(quantum)
        assert (Fraction(share) / Fraction(quantum)).denominator == 1


@given(
    st.lists(
        st.builds(
            Fraction,
            st.integers(-(10**7), 10**7),
            st.sampled_from([1, 3, 7, 10**12, 2 * 10**12, 4 * 10**12, 6 * 10**12, 10**18]),
        ),
        max_size=12,
    )
)
def test_pieces_are_the_differences_of_the_rounded_sums(amounts: list[Fraction]) -> None:
    sums = [Fraction(0)]
    for amount in amounts:
        sums.append(sums[-1] + amount)
    expected = [quantise_line(b) - quantise_line(a) for a, b in pairwise(sums)]
    assert list(map(str, quantise_pieces(amounts))) == list(map(str, expected))


@given(lines=LINES, quantum=QUANTA, rounding=st.sampled_from(Rounding))
def test_the_residue_is_at_most_half_a_quantum(lines: dict[str, Decimal], quantum: Decimal, rounding: Rounding) -> None:
    exact = total(lines.values())
    assert abs(Fraction(exact) - Fraction(round_to_quantum(exact, quantum, rounding))) * 2 <= Fraction(quantum)


@given(lines=LINES, quantum=QUANTA, data=st.data())
def test_the_order_of_the_lines_does_not_matter(
    lines: dict[str, Decimal], quantum: Decimal, data: st.DataObject
) -> None:
    rounded = round_to_quantum(total(lines.values()), quantum)
    shuffled = dict(data.draw(st.permutations(list(lines.items()))))
    assert spread(rounded, shuffled, quantum) == spread(rounded, lines, quantum)


@given(lines=LINES, quantum=QUANTA)
def test_it_agrees_with_largest_remainder_done_naively_in_fractions(
    lines: dict[str, Decimal], quantum: Decimal
) -> None:
    step = Fraction(quantum)
    quanta = {key: Fraction(amount) / step for key, amount in lines.items()}
    whole = {key: value.numerator // value.denominator for key, value in quanta.items()}
    missing = round(sum(quanta.values(), Fraction(0))) - sum(whole.values())
    for key in sorted(quanta, key=lambda k: (whole[k] - quanta[k], k.encode()))[:missing]:
        whole[key] += 1
    rounded = round_to_quantum(total(lines.values()), quantum)
    assert {key: Fraction(share) / step for key, share in spread(rounded, lines, quantum).items()} == whole
