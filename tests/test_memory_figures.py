"""Numbers in free text: which are masked, and in which notations they are found."""

import pytest

from virtualmle.memory.figures import UNVERIFIED, comparison, is_borne_out, mask_unverified, one_digit

KNOWN = (0.31234567, 0.0123456, -0.0045678, 1440, 0.1234, 4.51, 12)

SECRETS = [
    "0.4242", ".4242", "0.42421", "0,4242", "42.42 %", "42.42%", "42,42 %", "42.42 percent", "42.42 per cent",
    "42.42 pct", "424.2 ‰", "4242e-4", "4.242E-1", "4.242 x 10^-1", "4.242×10⁻¹", "42.42e-2", "−0.4242", "+0.4242",
    "٠٫٤٢٤٢", "０．４２４２", "𝟎.𝟒𝟐𝟒𝟐", "四二四二", "4242", "4 242", "0.4 242", "0.42 42", "4 2 4 2", "4, 2, 4, 2",
    "4/2/4/2", "4-2-4-2", "0_4242", "0.4_2_4_2", "0'4242", "t4242", "0.4242ndcg", "x0.4242", "0.42420000",
    "0.42", "42.4", "424", "zero point four two four two", "forty-two point four two", "Four Two Four Two",
]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
def test_a_figure_that_nothing_bears_out_is_masked_in_every_notation(secret: str) -> None:
    masked = mask_unverified(f"the test NDCG@10 was {secret}, they say; go on", KNOWN)
    assert UNVERIFIED in masked
    assert masked.startswith("the test NDCG@10 was ") and masked.endswith(", they say; go on")
    assert not any(part in masked for part in ("42", "٤٢", "４２", "四", "𝟒", "our", "4, 2", "4/2", "4-2", "4_2"))


@pytest.mark.parametrize(
    "text",
    [
        "NDCG@10 0.3123 of t003, 31.2 % or 31.23%",
        "+0.0123 ± 0.005 (z 4.5), 12.3 % over the base",
        "it fell by −0.0046, or 0.00457",
        "1,440 users, or 1440, or 1 440, or 1'440",
        "12 trials, 3 of 7 helped, 100 in all",
        "hidden_dim 256, batch_size=4096, seq 16, 32, 64",
        "lr 0.0003 and lr=3e-4, dropout 0.25, 5 % of a 0.1",
        "a 95 % interval, the 90 % one, recall@5 and recall@10",
        "a change of -0.0300 is 1 digit, however it is written",
        "t001 and t012 of office-hstu-2; python 3.11.2",
        "no number at all, but one or two words",
    ],
)
def test_recorded_figures_and_numbers_that_say_little_stay(text: str) -> None:
    assert mask_unverified(text, KNOWN) == text


def test_a_value_of_a_knob_may_have_two_digits_and_no_more() -> None:
    assert mask_unverified("try dropout 0.42 next", ()) == "try dropout 0.42 next"
    assert mask_unverified("try dropout 0.4242 next", ()) == f"try dropout {UNVERIFIED} next"
    assert mask_unverified("dropout helps. The result was 0.42.", ()) == f"dropout helps. The result was {UNVERIFIED}."


def test_a_number_is_borne_out_only_if_a_recorded_one_rounds_to_it() -> None:
    assert mask_unverified("0.312 0.3123", KNOWN) == "0.312 0.3123"
    assert mask_unverified("0.313, 0.3124", KNOWN) == f"{UNVERIFIED}, {UNVERIFIED}"
    known = comparison(KNOWN)
    assert all(is_borne_out(value, known) for value in (0.0123, -0.0123, 0.31234567))
    assert not any(is_borne_out(value, known) for value in (0.0124, 0.4242, float("nan"), float("inf")))


def test_a_claimed_size_keeps_one_digit() -> None:
    assert [one_digit(value) for value in (0.4242, -0.0037, 0.003, 0.0, None)] == [0.4, -0.004, 0.003, 0.0, None]


@pytest.mark.parametrize("text", ["9" * 6000, "1e999", "0." + "4" * 6000, "1 " * 3000, "0.5," * 2000, "1e-999 %"])
def test_monstrous_numbers_are_handled(text: str) -> None:
    assert isinstance(mask_unverified(text, KNOWN), str)
