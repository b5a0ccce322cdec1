"""Markup in a text: what is spoken, how, and where its words are in the text with markup."""

from __future__ import annotations

from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterwords.audio.subtitles import to_srt
from afterwords.errors import TextError
from afterwords.markup import Segment, parse, reading_of
from afterwords.models import Alignment, LexiconEntry, Reading, WordTiming, word_spans
from afterwords.speech import without_markup
from tests.error_codes import has_code


def ways(text: str, **options: bool | list[str]) -> list[tuple[str, float, float]]:
    """Return the words, pause and rate of each segment."""
    script = parse(text, **options)  # type: ignore[arg-type]
    return [(" ".join(each.text.split()), each.pause_s, each.rate) for each in script.segments]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. [pause 1.5s] Two.", [("One.", 0, 1), ("Two.", 1.5, 1)]),
        ("[pause 500ms]One[PAUSE .5 s][pause:1s].", [("One", 0.5, 1), ("", 1.5, 1)]),
        ("One [pause 60s] two", [("One", 0, 1), ("two", 5, 1)]),
        ("As [1] says, see [a b] and x[i].", [("As [1] says, see [a b] and x[i].", 0, 1)]),
        ("<speak>One<break time='2s'/>two</speak>", [("One", 0, 1), ("two", 2, 1)]),
        ("<speak>One <break/> <break strength='x-weak'/> two.</speak>", [("One", 0, 1), ("two.", 0.6, 1)]),
        ("<speak><p>One</p><s>two</s></speak>", [("One two", 0, 1)]),
        (
            "<speak>A <prosody rate='80%'>b <prosody rate='+25%'>c</prosody> d</prosody> e</speak>",
            [("A", 0, 1), ("b", 0, 0.8), ("c", 0, 1.0), ("d", 0, 0.8), ("e", 0, 1)],
        ),
        ("<speak><prosody rate='x-slow'>a</prosody>b</speak>", [("a", 0, 0.6), ("b", 0, 1)]),
        ("<speak><prosody rate='9'>a</prosody></speak>", [("a", 0, 2)]),
        ("<speak><sub alias='World Wide Web'>WWW</sub> &amp; caf&#233;</speak>", [("World Wide Web & café", 0, 1)]),
        ("<speak><say-as interpret-as='characters'>AB1</say-as></speak>", [("A B 1", 0, 1)]),
        ("  <speak>\n  One.\n</speak>\n", [("One.", 0, 1)]),
    ],
)  # fmt: skip
def test_markup_is_read(text: str, expected: list[tuple[str, float, float]]) -> None:
    assert [(words, pause_s, round(rate, 6)) for words, pause_s, rate in ways(text)] == expected


@pytest.mark.parametrize(
    ("text", "notice"),
    [
        ("One [pause] two.", "position 4.*needs a duration"),
        ("One [pause soon] two.", "needs a duration"),
        ("One [pause 1s two.", "closing bracket"),
        ("One [pause [pause 1s] 2s] two.", "contains another tag"),
        ("One [voice] two.", "needs a name"),
        ("One [voice:anna] two.", "one voice speaks here"),
        ("One [happy] two.", "no take of that name"),
        ("<speak>One", "not valid XML"),
        ("<speak>One <break></speak>", "not valid XML"),
        ("<speak>&lol;</speak>", "not valid XML"),
        ("<speaker>", "not valid XML"),
    ],
)
def test_unread_markup_is_spoken_with_a_notice(text: str, notice: str) -> None:
    script = parse(text)
    assert script.text == text
    assert len(script.notices) == 1
    with pytest.raises(AssertionError, match=notice):
        raise AssertionError(script.notices[0])
    assert "One" not in script.notices[0]


@pytest.mark.parametrize(
    "inner",
    [
        "<emphasis>One</emphasis>",
        "<secret>One</secret>",
        "<audio src='file:///etc/passwd'>One</audio>",
        "<break time='soon'/>One",
        "<prosody rate='tall'>One</prosody>",
        "<prosody pitch='high'>One</prosody>",
        "<phoneme alphabet='x-sampa' ph='wVn'>One</phoneme>",
        "<speak>One</speak>",
    ],
)
def test_unsupported_ssml_is_ignored_with_a_notice(inner: str) -> None:
    script = parse(f"<speak>{inner}</speak>")
    assert script.text == "One"
    assert len(script.notices) == 1
    assert parse(f"<speak>{inner * 50}</speak>").notices == script.notices
    assert "secret" not in script.notices[0]


def test_voices_and_emotions_last_until_the_next() -> None:
    text = "A. [voice:Old Anna] B. [happy] C. [voice:] D. [sad] E. [calm] F."
    script = parse(text, emotions={"happy", "sad"}, has_voices=True)
    assert [(each.text.strip(), each.voice, each.emotion) for each in script.segments] == [
        ("A.", None, None),
        ("B.", "Old Anna", None),
        ("C.", "Old Anna", "happy"),
        ("D.", None, "happy"),
        ("E. [calm] F.", None, "sad"),
    ]


TOMATO = "<speak>a <phoneme ph='təˈmɑːtəʊ'>tomato</phoneme>.</speak>"
LEXICON = (
    LexiconEntry(word="W3C", alias="World Wide Web Consortium"),
    LexiconEntry(word="tomato", ipa="təˈmɑːtəʊ"),
    LexiconEntry(word="nginx", alias="engine x", ipa="ˈɛndʒɪnˈɛks"),
)


@pytest.mark.parametrize(("text", "lexicon"), [(TOMATO, ()), ("a tomato.", LEXICON), ("A Tomato's", LEXICON)])
def test_words_with_sounds_have_a_stand_in(text: str, lexicon: tuple[LexiconEntry, ...]) -> None:
    script = parse(text, lexicon=lexicon)
    ((word, ipa),) = script.segments[0].pronunciations.items()
    assert ipa == "təˈmɑːtəʊ"
    assert word in script.text.lower()
    assert "tomato" not in script.text.lower()
    found = script.words_in_source(timed(script.segments[0]), script.segments[0])
    assert "tomato" in found[1].text.lower()
    assert text[found[1].start :].startswith(found[1].text)


def test_aliases_replace_whole_words() -> None:
    script = parse("The W3C, w3c, W3Cs and Nginx-like [pause 1s] TOMATO.", lexicon=LEXICON, reads_ipa=False)
    assert script.text == "The World Wide Web Consortium, w3c, W3Cs and engine x-like   TOMATO."
    assert ["IPA" in notice for notice in script.notices] == [True]
    assert parse(TOMATO, reads_ipa=False).text == "a tomato."


def timed(segment: Segment) -> list[WordTiming]:
    return [
        WordTiming(text=segment.text[start:end], start=start, start_s=at, end_s=at + 1)
        for at, (start, end) in enumerate(word_spans(segment.text))
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("One [pause 1s] two [happy] three.", ["One", "two", "happy", "three"]),
        (
            "<speak>é &lt; <sub alias='World Wide Web'>WWW</sub>, R&amp;D <break/> end</speak>",
            ["é", "&lt;", "<sub alias='World Wide Web'>WWW</sub>", "R&amp;D", "end"],
        ),
    ],
)
def test_words_have_their_position_in_the_source(text: str, words: list[str]) -> None:
    script = parse(text)
    found = [word for segment in script.segments for word in script.words_in_source(timed(segment), segment)]
    assert [word.text for word in found] == words
    assert all(text[word.start :].startswith(word.text) for word in found)
    whole = Segment(script.text, (), ())
    assert [word.text for word in script.words_in_source(timed(whole))] == [word.text for word in found]


@given(st.text(alphabet="ab [].:1spaue<>/&\n\"'=éx", max_size=60) | st.text(max_size=40))
def test_any_text_is_parsed(text: str) -> None:
    for source in (text, f"<speak>{text}</speak>"):
        try:
            script = parse(source, emotions={"happy"}, has_voices=True, lexicon=(LexiconEntry(word="a", alias="b c"),))
        except TextError:
            continue
        for segment in script.segments:
            assert len(segment.text) == len(segment.starts) == len(segment.ends)
            places = [0, *segment.starts, len(source)]
            assert places == sorted(places)
        if not {"[", "a", "A", "<"} & set(source):
            assert script.text == source


USED = (LexiconEntry(word="a", alias="b c"), LexiconEntry(word="X&i", alias="and"), LexiconEntry(word="b]", alias="d"))


@given(
    st.text(alphabet="ab [].:XIİispaue<>/&;\n\"'=éx", max_size=60) | st.sampled_from(("<speak>x&amp;i</speak>", "x&İ"))
)
def test_reading_has_all_that_a_text_uses(text: str) -> None:
    for source in (text, f"<speak>{text}</speak>", f"[Happy]{text}"):
        try:
            whole = parse(source, emotions={"happy", "sad"}, lexicon=USED)
        except TextError:
            continue
        reading = reading_of(source, lexicon=USED, emotions={"happy", "sad"})
        assert parse(source, emotions=reading.emotions, lexicon=reading.lexicon) == whole


def test_reading_lacks_what_a_text_does_not_use() -> None:
    unused = LexiconEntry(word="nginx", alias="engine x")
    assert reading_of("[sad] A b.", lexicon=(*USED, unused), emotions={"happy", "sad"}) == Reading(
        lexicon=USED[:1], emotions=("sad",)
    )


def test_ssml_without_text_is_refused() -> None:
    with pytest.raises(TextError, check=has_code("empty_text")):
        parse("<speak><p/></speak>")
    assert ways("<speak><break time='1s'/></speak>") == [("", 1, 1)]


HOSTILE = ("[pause ", "[pause 1s]", "[pause [x]", "[voice:", "[", "[pause [", "[pause [x][y", "[happy]")
HOSTILE_SSML = ("<p>", "<p>a</p>", "&amp;", "<break/>é", "<sub alias='x'>", "<prosody rate='50%'>a</prosody>")


@pytest.mark.parametrize("unit", [*HOSTILE, *(f"<speak>a{unit}" for unit in HOSTILE_SSML)])
def test_work_grows_linearly_with_the_text(unit: str) -> None:
    head, unit = ("<speak>a", unit[8:]) if unit.startswith("<speak") else ("", unit)

    def cpu_s(n_units: int) -> float:
        started = process_time()
        parse(head + unit * n_units)
        parse(head + unit * n_units + "</speak>" * bool(head))
        return process_time() - started

    parse(unit)
    # The least of three: garbage collection counts all objects of the process, which other tests made.
    assert min(cpu_s(16_000) for _ in range(3)) < 30 * max(cpu_s(2_000), 0.005)


def test_entities_are_never_expanded() -> None:
    laughs = '<speak><!DOCTYPE s [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;">]>&b;</speak>'
    assert "not valid XML" in parse(laughs).notices[0]
    assert parse(laughs).text == laughs


@pytest.mark.parametrize(
    ("word", "text"), [("µm", "5 μm"), ("istanbul", "İSTANBUL"), ("s", "ſ"), ("οδος", "ΟΔΟσ"), ("us", "Us")]
)
def test_letters_with_several_forms_match_in_any_case(word: str, text: str) -> None:
    entry = LexiconEntry(word=word, alias="alias")
    assert parse(text, lexicon=(entry,)).text.endswith("alias")


def test_a_word_in_capitals_precedes_that_in_any_case() -> None:
    lexicon = (LexiconEntry(word="us", alias="we"), LexiconEntry(word="US", alias="states"))
    assert parse("US, us, Us", lexicon=lexicon).text == "states, we, we"


@pytest.mark.parametrize("inner", ["two\nlines", "A&amp;B", "<s>a</s>b", "\n word \n"])
def test_sounds_of_a_phoneme_are_spoken_once(inner: str) -> None:
    script = parse(f"<speak>One <phoneme ph='x'>{inner}</phoneme> two</speak>")
    assert len([word for word in script.text.lower().split() if word.startswith("zq")]) == 1
    assert script.text.lower().count("zq") == 1
    unread = parse(f"<speak>One <phoneme ph='x'>{inner}</phoneme> two</speak>", reads_ipa=False)
    assert len(unread.text.split()) >= 3


@pytest.mark.parametrize(
    ("text", "subtitle"),
    [
        ("<speak><break/></speak>", ""),
        ("a\ufeffb [pause 1s] cd", "a\ufeffb cd"),
        ("<speak>The <sub alias='World Wide Web'>WWW</sub> &lt; 1</speak>", "The WWW &lt; 1"),
        ("<b>x</b>", "<b>x</b>"),
    ],
)
def test_subtitles_are_what_is_spoken(text: str, subtitle: str) -> None:
    n_chars = len(text)
    times = {"start_s": tuple(map(float, range(n_chars))), "end_s": tuple(map(float, range(1, n_chars + 1)))}
    spoken = without_markup(Alignment(characters=tuple(text), confidence=1, **times), parse(text))
    assert " ".join("".join(spoken.characters).split()) == subtitle
    assert bool(to_srt(spoken)) == bool(subtitle)
