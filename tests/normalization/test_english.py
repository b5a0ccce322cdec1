"""Spelling of numbers, dates, money, units, signs and abbreviations."""

from __future__ import annotations

import re
from itertools import product
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterwords.backends.lite.engine import LiteEngine
from afterwords.backends.lite.g2p import has_sound, plain_words, tokens
from afterwords.errors import TextError
from afterwords.normalization.english import spell, unspoken
from tests.error_codes import has_code


def said(text: str) -> str:
    """Return the words of `plain_words` in lowercase, with apostrophes as the only marks."""
    return " ".join(re.findall(r"[a-z']+", plain_words(text).lower()))


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("at 12:30 sharp", "at twelve thirty sharp"),
        ("9:05", "nine oh five"),
        ("12:00", "twelve o'clock"),
        ("7:00 a.m. today", "seven a m today"),
        ("5:30pm", "five thirty p m"),
        ("8 pm", "eight p m"),
        ("10:15:30", "ten fifteen thirty"),
        ("9:30-10:45 and 9am–5pm", "nine thirty to ten forty five and nine a m to five p m"),
        ("a ratio of 2:1", "a ratio of two to one"),
        ("On 2024-03-12T09:30:00", "on march twelfth twenty twenty four nine thirty"),
        ("25/12/2024, 12/25/2024", "december twenty fifth twenty twenty four december twenty fifth twenty twenty four"),
        ("on 12/03/2024", "on december third twenty twenty four"),
        ("in the '90s, the 1980s and mid-2000s", "in the nineties the nineteen eighties and mid two thousands"),
    ],
)  # fmt: skip
def test_dates_and_times(written: str, words: str) -> None:
    assert said(written) == words


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("The war ended in 1945—and nothing", "the war ended in nineteen forty five and nothing"),
        ("Only one—42—and nothing", "only one forty two and nothing"),
        ("She (1990–).", "she nineteen ninety"),
        ("10–20 people, 1914-1918, 2023-24", "ten to twenty people nineteen fourteen to nineteen eighteen "
         "twenty twenty three to twenty four"),
        ("1, 2,3", "one two three"),
        ("1,234,567", "one million two hundred thirty four thousand five hundred sixty seven"),
        ("007", "zero zero seven"),
        ("0.05 and .5", "zero point zero five and point five"),
        ("10'000", "ten thousand"),
        ("1234567890123456", "one two three four five six seven eight nine zero one two three four five six"),
        ("1½ cups", "one and a half cups"),
        ("Add 1/2 cup and 3/4 teaspoon", "add a half cup and three quarters teaspoon"),
        ("Add ½ cup, ⅝ inch", "add a half cup five eighths inch"),
        ("3 1/2 hours", "three and a half hours"),
        ("call 555-4567 or (555) 123-4567", "call five five five four five six seven or five five five one two three "
         "four five six seven"),
        ("٣ and १२", "three and twelve"),
        ("the 2nd, 21st and 100s", "the second twenty first and hundreds"),
        ("MP3, A4 and abc123", "mp three a four and abc one hundred twenty three"),
        ("No. 5 and #7, pp. 3–4", "number five and number seven pages three to four"),
        ("version 1.2.3", "version one point two point three"),
        ("a 10/10 film, 24/7", "a ten out of ten film twenty four seven"),
        ("Henry VIII, World War II", "henry the eighth world war two"),
        ("Vol. III, George V and Elizabeth I was", "volume three george the fifth and elizabeth the first was"),
    ],
)  # fmt: skip
def test_numbers(written: str, words: str) -> None:
    assert said(written) == words


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("fell to −10 degrees", "fell to minus ten degrees"),
        ("It was –5 °C.", "it was minus five degrees celsius"),
        ("–3.5% and +$20", "minus three point five percent and plus twenty dollars"),
        ("-$5, $-5 and 5$", "minus five dollars minus five dollars and five dollars"),
        ("(-3) x = -3", "minus three x equals minus three"),
        ("7 - 2 = 5 and 12 / 4 = 3", "seven minus two equals five and twelve divided by four equals three"),
        ("7-2=5, 7−2", "seven minus two equals five seven minus two"),
        ("2 + 3 × 4 ÷ 6", "two plus three times four divided by six"),
        ("10^5, 10⁻³, x²", "ten to the power of five ten to the power of minus three x squared"),
        ("3-5 copies", "three to five copies"),
        ("COVID-19 and F-16", "covid nineteen and f sixteen"),
        ("5'10\"–6'1\" and 3k–5k", "five feet ten inches to six feet one inch and three k to five k"),
        ("x >= 10, y != 5, p<0.05", "x at least ten y is not five p less than zero point zero five"),
    ],
)
def test_signs_that_change_the_meaning(written: str, words: str) -> None:
    assert said(written) == words


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("came to $500—too much", "came to five hundred dollars too much"),
        ("$10-$20", "ten to twenty dollars"),
        ("$5-10 million, €5 – €10", "five to ten million dollars five to ten euros"),
        ("£5.50 million", "five point five million pounds"),
        ("$1.5 million, $3.2M, $3bn, $4k", "one point five million dollars three point two million dollars "
         "three billion dollars four thousand dollars"),
        ("$5.50, $0.99, $1, $1500", "five dollars and fifty cents ninety nine cents one dollar "
         "one thousand five hundred dollars"),
        ("$1,234.5", "one thousand two hundred thirty four dollars and fifty cents"),
        ("20€, ₹5, 5¢, 25 USD", "twenty euros five rupees five cents twenty five u s dollars"),
        ("a $20 bill", "a twenty dollar bill"),
        ("5km, 1 kg, 100kg.", "five kilometers one kilogram one hundred kilograms"),
        ("a 10-km run at 60 km/h", "a ten kilometer run at sixty kilometers per hour"),
        ("sixty sq miles, per sq ft, in ft", "sixty sq miles per square foot in feet"),
        ("6'2\" and 5 m/s", "six feet two inches and five meters per second"),
        ("90 hrs. and 5 lbs.", "ninety hours and five pounds"),
        ("1/2 lb, 2 1/2 lbs", "a half pound two and a half pounds"),
        ("10' x 12', 2h 15m, 6 hrs./week", "ten feet by twelve feet two hours fifteen minutes six hours per week"),
        ("1.2M people, $1,250.00 USD", "one point two million people one thousand two hundred fifty u s dollars"),
        ("5 μg of α, 3 km²", "five micrograms of alpha three square kilometers"),
    ],
)  # fmt: skip
def test_money_and_measures(written: str, words: str) -> None:
    assert said(written) == words


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("Martin Luther King Jr. met Lt. Brown and Capt. Jones.", "martin luther king junior met lieutenant brown and "
         "captain jones"),
        ("It opens on Feb. 6, Apr. 8, Oct. 11 and Dec. 5.", "it opens on february six april eight october eleven and "
         "december five"),
        ("See you on Mon., Tue. and Sat.", "see you on monday tuesday and saturday"),
        ("On Mar. 7 we met.", "on march seven we met"),
        ("Acme Inc. and Smith Ltd. climbed Mt. Everest.", "acme incorporated and smith limited climbed mount everest"),
        ("St. John vs. Mr. Smith on Elm St.", "saint john versus mister smith on elm street"),
        ("Dr. Lee, 5 Oak Dr.", "doctor lee five oak drive"),
        ("He sat. The sun. I saw Jan.", "he sat the sun i saw jan"),
        ("e.g. this, i.e. that, etc.", "for example this that is that et cetera"),
        ("Mon–Fri, w/o milk", "monday to friday without milk"),
        ("www.example.com/a and me@my-site.org", "w w w dot example dot com slash a and me at my dash site dot org"),
    ],
)  # fmt: skip
def test_abbreviations_and_addresses(written: str, words: str) -> None:
    assert said(written) == words


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("THE DOORS CLOSED. ORDERS WERE SHIPPED.", "the doors closed.\n\norders were shipped."),
        ("PLEASE STOP TALKING. THE MEETING STARTED.", "please stop talking.\n\nthe meeting started."),
        ("He STARTED it; A DOG'S life", "He started it; A dog's life"),
        ("NASA, the FBI and the US army", "NASA, the FBI and the U.S. army"),
        ("COME WITH US NOW", "come with us now"),
    ],
)
def test_capitalized_words_in_the_dictionary_are_words(written: str, plain: str) -> None:
    assert plain_words(written) == plain


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("naïve café, Zoë Müller", "naive cafe, Zoe Muller"),
        ("Straße, Łódź, ﬁne", "Strasse, Lodz, fine"),
        ("cafe\u0301, 1\ufe0f\u20e3", "cafe, one"),
        ("hello\u200bworld, co\u00adoperate", "hello world, cooperate"),
        ("**bold** and `code`", "bold and code"),
        ("canʼt, won’t, it´s, O＇Neil", "can't, won't, it's, O'Neil"),
        ("Привет, Tom 你好", ", Tom"),
        ("word(s), f(x)", "words, f x"),
        ("Wait...what—really", "Wait... what — really"),
    ],
)
def test_only_plain_letters_remain(written: str, plain: str) -> None:
    assert spell(written) == plain


@pytest.mark.parametrize(
    "text",
    [
        "The boy was there when the sun rose early.",
        "Rice is often served in round bowls, and the juice of lemons makes fine punch.",
        "“Don't!” she said — it's an O'Neil's well-known (old) dog; isn't it?",
    ],
)
def test_plain_english_is_unchanged(text: str) -> None:
    assert spell(text) == text


def test_unspoken_words_are_listed_once() -> None:
    assert unspoken("My friend Иван, and “Иван” (café, π, ﬁne, Łódź) 😀 said 你好!") == ["Иван", "你好"]
    assert unspoken("Plain, naïve — 10 € & ½ °C…") == []


@pytest.mark.parametrize(("text", "words"), [("Hello Иван!", ["Иван"]), ("naïve 😀 £5", [])])
def test_engine_lists_skipped_words(text: str, words: list[str]) -> None:
    assert LiteEngine().unspoken(text) == words


@pytest.mark.parametrize("text", ["Привет, мир", "你好。", "Ελλάδα …"])
def test_engine_refuses_a_text_of_other_scripts(text: str) -> None:
    with pytest.raises(TextError, check=has_code("unspeakable_text")):
        LiteEngine().unspoken(text)


# What stands against a number: nothing of it may take the number away, or touch the words around.
BEFORE = [
    "", *"-–—−‒―‐+±~≈<>=*#@&%^|\\/_.,:;!?'\"`’‘“”„«‹([{•·…°§†$£€¥₹¢©®™№µ×÷√→", "--", "...", "no. ", "v", "US$", "-$",
    "$-", "(-", "x", "A", "mid-", "Q", "and/", "x=", "COVID-", "http://", "Jan. ", "St.", "1-", "1/", "1,", "1.", "0",
    "é", "Ж", "中", "π", "½",
]  # fmt: skip
AFTER = [
    "", *"-–—−‒―‐+±~≈<>=*#@&%^|\\/_.,:;!?'\"`’“”»›)]}•…°§†$£€¥₹¢©®™µ×÷²₂′″", "--", "...", "st", "nd", "th", "s", "'s",
    "ish", "k", "M", "bn", " million", "km", "-km", "°C", "%-", "am", " p.m.", "h", "hrs.", "x", "A", "-year-old", "/7",
    "/2", "/month", "/2024", ":00", ":5", "-9", "–9", "—9", " - 9", "−9", ".5", ",5", ",000", ".000.000", "-9-9",
    "—and", "–)", "'9\"", "++", "?!", " 1/2", "½", "USD", "é", "Ж", "中", "π", "mm²", "e5", "@b.com", ".com", ".pdf",
    "**", "\u200b", "\ufe0f\u20e3",
]  # fmt: skip


def test_no_number_is_dropped_next_to_any_sign() -> None:
    for before, after in product(BEFORE, AFTER):
        text = f"pumpkin {before}42{after} gardens"
        found = re.fullmatch(r"pumpkin\W+(.*[a-z].*) gardens", spell(text))
        assert found is not None, text
        assert "fo" in found[1], text  # forty two, four two, four hundred


@given(st.text("0123456789.,:-–−/$€%°'’ abAM½²()", max_size=25))
@settings(deadline=None, max_examples=60)
def test_every_digit_leaves_a_sound(text: str) -> None:
    said = tokens(plain_words(f"pumpkin {text} gardens"))
    is_spoken = sum(map(has_sound, zip(said))) > sum(map(has_sound, zip(tokens("pumpkin gardens"))))
    assert is_spoken or not any(character.isdigit() for character in text)


@given(st.text(max_size=60))
def test_any_text_becomes_letters_and_marks(text: str) -> None:
    assert re.fullmatch(r"[A-Za-z .,:;!?'\"()…“”‘’—-]*", spell(text))


@pytest.mark.parametrize(
    "unit",
    [
        "1",
        "1,",
        "1-",
        "1/",
        "1:",
        "$1",
        "½",
        "-",
        "a.",
        "a@",
        "A'",
        "1 km",
        "a.com",
        "http://",
        "Mon.-",
        "²",
        "(",
        "[a](",
        "[",
        "/a",
        "~/a",
        "a.py",
        "a/",
        "😂",
        "\u200d😂",
        "🇫",
        "+1 ",
        "X",
        ":) ",
    ],
)
def test_work_grows_linearly_with_the_text(unit: str) -> None:
    def cpu_s(length: int) -> float:
        text = (unit * length)[:length]
        started = process_time()
        spell(text)
        return process_time() - started

    spell(unit)
    assert min(cpu_s(16_000) for _ in range(3)) < 30 * max(cpu_s(2_000), 0.005)


def test_amounts_longer_than_an_int_can_be_read_are_spelled() -> None:
    assert spell(f"${'9' * 5000}.50").endswith("nine dollars and fifty cents")
    assert spell("$01.00 and $00.05") == "zero one dollar and five cents"
