"""Measure how well `say --verify` finds faults, with whisper-tiny: sentences of `lite`, each with four planted faults.

Another Whisper model: `python -m benchmarks.verification FOLDER`.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib.resources import files
from typing import Final, NamedTuple

import numpy as np

from afterwords.audio.audio import Audio, decode
from afterwords.audio.wav import Samples
from afterwords.backends.base import Reference
from afterwords.backends.lite.engine import LiteEngine
from afterwords.backends.lite.kokoro import Kokoro, PitchTarget, model_file
from afterwords.backends.lite.profile import LiteProfile
from afterwords.backends.lite.shaping import CEPSTRA, TAPS, CepstralMap
from afterwords.backends.lite.styles import style_space
from afterwords.backends.speech_check import SpeechChecker
from afterwords.config import load_config
from afterwords.models import SpeechTask, WordTiming
from benchmarks.judges import whisper_folder

READER_SENTENCES = (
    "The birch canoe slid on the smooth planks.",
    "Glue the sheet to the dark blue background.",
    "These days a chicken leg is a rare dish.",
    "Four hours of steady work faced us.",
    "A large size in stockings is hard to sell.",
    "The small pup gnawed a hole in the sock.",
    "Kick the ball straight and follow through.",
    "A pot of tea helps to pass the evening.",
    "She sells seashells by the seashore, and the shells she sells are surely seashells.",
    "On 5 May 1999, Dr. Smith paid $5.50 for 3 apples; they were green.",
    "If you want to know the truth, ask your mother, not your father.",
    "The meeting starts at ten, so please be there on time.",
    "A large fawn jumped quickly over the white zinc boxes.",
    "Peter brought bread, butter, and a basket of red tomatoes from the garden.",
    "Why did the teacher close the window?",
    "Nothing is certain in this life, except that tomorrow the market opens again.",
    "The train to Hamburg leaves from platform 12 at a quarter past seven.",
    "My grandmother wrote her letters with a fountain pen until the end.",
    "Can you believe that they painted the whole barn in a single afternoon?",
    "Version 3.2 fixes the crash that many users reported last week.",
    "He was not an ill-disposed young man, unless to be rather selfish is to be so.",
    "Turn left at the church, then walk straight on until you see the river.",
    "The committee voted against the proposal by a narrow majority.",
    "Our flight was cancelled, and the next one was not until Thursday morning.",
    "Most of the money was spent on a new roof for the school.",
    "It rained so hard that the cellar was under water within an hour.",
    "Please don't forget to water the plants while we are away.",
    "The doctor told me to drink more water and to sleep at least eight hours.",  # quoted
    "In the north, winters are long, dark and bitterly cold.",
    "They found the key under a flowerpot behind the house.",  # quoted
    "A good dictionary gives the meaning and the history of each word.",
    "Her brother plays the cello in a youth orchestra.",
    "Never leave a candle burning in an empty room.",
    "The price went up by 15% in only two years.",
    "We bought cheese, olives and a loaf of bread for the picnic.",
    "Every child in the village knew the old story of the lake.",
    "The lawyer read the contract twice before he signed it.",
    "Snow covered the mountains, but the valley was already green.",
    "I had hoped to finish the report by noon, but the printer broke.",
    "After dinner they sat by the fire and talked about their travels.",
)
"""Harvard sentences, and others with numbers, names and clauses."""
SECOND_SENTENCES = (
    "Yes.",
    "Stop!",
    "Good morning.",
    "Thank you.",
    "Come in, please.",
    "Where is Anna?",
    "Not today.",
    "Seventeen.",
    "See you later.",
    "What happened?",
    "The invoice of 14 March 2023 amounts to $1,249.99.",
    "Flight 482 to Reykjavik boards at gate 17.",
    "Mrs. O'Connor lives at 221 Baker Street, apartment 3.",
    "Did Siobhan really finish the marathon in 3 hours and 41 minutes?",
    "Call me on Thursday, 22 August, at half past six.",
    "How many people live in Kuala Lumpur?",
    "About 68% of the voters in Oregon supported the measure.",
    "Professor Nakamura will meet Dr. Oliveira in Copenhagen.",
    "Is it cheaper to fly to Marseille or to take the night train?",
    "The temperature fell to -12 degrees in Winnipeg.",
    "In 1969, Neil Armstrong walked on the moon.",
    "Please add 250 grams of flour and 3 eggs.",
    "The old bridge was closed because of the flood.",
    "Somebody left an umbrella on the bus this morning.",
    "We could hear the music from across the street.",
    "I would rather stay at home and read a book.",
    "The cat jumped off the shelf and knocked over a vase.",  # quoted
    "Her answer surprised everyone in the room.",
    "Wash the apples, peel them and cut them into thin slices.",
    "The engineers tested the pump again and again until it worked.",
    "That that is, is; that that is not, is not.",
    "The farmer sold his tractor and bought a motorcycle.",
    "When the storm finally passed, the villagers came out of their houses, looked at the broken fences and "
    "the fallen trees, and began without a word to clear the road so that the ambulance could reach the "
    "hospital before it was dark.",
    "The library, which had been closed for almost two years while the roof was repaired and the heating "
    "replaced, opened its doors again on a cold Saturday in January, and more than a thousand people stood in "
    "line to borrow their first book.",
    "If you press the green button for longer than three seconds, the machine starts to clean itself, heats "
    "the water, rinses the pipes twice, and after about ten minutes shows a message on the screen that tells "
    "you to empty the tray below.",
    "My uncle, who worked for most of his life on a fishing boat near the coast of Norway, used to say that "
    "the sea forgives a mistake once, maybe twice, but never the pride of a man who refuses to turn back in "
    "time.",
    "Although the orchestra had rehearsed the symphony every evening for a month, the conductor stopped in the "
    "middle of the second movement, lowered his arms, apologized to the audience, and asked the violins to "
    "begin once more from the top of the page.",
    "The city plans to plant two hundred trees along the main avenue, to widen the path for bicycles, and to "
    "move the parking spaces underground, but several shop owners fear that their customers will stay away "
    "while the work goes on.",
    "She opened the letter slowly, read the first lines, put it on the table, walked to the window, and looked "
    "for a long while at the empty garden where the children had played every summer before the family moved "
    "to the other side of the country.",
    "Before you climb to the upper valley, fill your bottles at the last well, tell the keeper of the cabin "  # quoted
    "which way you will take, and check the forecast, because the weather in these mountains may change from "
    "sunshine to snow within a single hour.",
)
"""The rules for written forms, single words and words that moved were made with them."""
HELD_OUT_SENTENCES = (
    "No.",
    "Listen!",
    "Good night.",
    "Excuse me.",
    "Sit down, Robert.",
    "Who called you?",
    "Maybe tomorrow.",
    "Ninety.",
    "Take it easy.",
    "Which one?",
    "The rent rose from $870 to $945 on 1 July 2021.",
    "Bus 36 to Glasgow leaves from platform 9.",
    "Mr. Fitzgerald ordered 12 chairs and 2 tables.",
    "Was Beatrice born in 1984 or in 1985?",
    "Our office closes at 5:30 on Friday, 13 December.",
    "Why does the river freeze so early in Manitoba?",
    "Only 7% of the students failed the exam in biology.",
    "Captain Rodriguez and Lieutenant Kowalski returned to Valparaiso.",
    "Do you prefer the blue curtains or the yellow ones?",
    "The tower is 324 meters tall and weighs 10,000 tons.",
    "In 1492, Columbus reached the Bahamas.",
    "Mix 3 cups of rice with 5 cups of water.",
    "The dentist moved my appointment to next week.",
    "A thick fog covered the harbor until noon.",
    "Nobody noticed that the painting was upside down.",  # quoted
    "He folded the map and put it into his pocket.",
    "The dog barked at the mailman and ran behind the garage.",
    "Their neighbor grows pumpkins and sunflowers.",
    "Lock the back door, turn off the lights and feed the fish.",
    "The children laughed and laughed until their mother came in.",
    "What you see is what you get, and what you get is yours.",
    "My sister repairs clocks in a tiny shop near the station.",  # quoted
    "After the last guest had left, the waiter blew out the candles, stacked the chairs on the tables, swept "  # quoted
    "the floor from one end to the other, counted the money twice, and walked home along the canal under a "
    "bright and silent moon.",
    "The museum owns more than four thousand letters that the painter wrote to his brother, to his friends and "
    "to the dealers in Paris, and a small team of scholars has spent the past twelve years reading, dating and "
    "translating every one of them.",
    "To remove the battery, loosen the two screws at the bottom of the case, lift the cover with a flat tool, "
    "pull the white connector straight up without bending the cable, and store the old cell in a dry place "
    "until you can recycle it.",
    "Because the ferry was late and the hotel had already given away our room, we slept in the waiting hall "
    "between two soldiers and a woman with a parrot, and in the morning the captain brought us coffee and a "
    "bag of warm bread.",
    "The new law requires every company with more than fifty employees to publish once a year how much energy "
    "it uses, how much waste it produces, and which steps it has taken to lower both, starting with the report "
    "for the coming spring.",
    "Grandfather kept his tools in a wooden chest beneath the stairs, each wrapped in an oiled cloth, and on "
    "rainy Sundays he would let us hold the smallest plane while he told us about the ships that he "  # quoted
    "had helped to build in Genoa.",
    "Scientists at the station measured the thickness of the ice every morning for nine months, and although "  # quoted
    "the instruments were often buried by snow, they found that the glacier had lost nearly a meter since the "
    "expedition began in early March.",
    "You may borrow the car on the condition that you bring it back with a full tank, drive no faster than the "
    "signs allow, and never let your cousin sit behind the wheel, because he has broken two mirrors and a "
    "headlight since Easter.",
)
"""Eleven of them were looked at while the limits were set."""
FAULTS = ("cut", "repeated", "silent", "swapped")
READER: Final = "reader"
"""The voice of the shipped recording; the others are stock voices of Kokoro."""


class Material(NamedTuple):
    """Sentences, and how they are spoken: each in one of the voices at one of the speeds."""

    sentences: Sequence[str]
    voices: Sequence[str]
    speeds: Sequence[float]


MATERIALS = {
    "first": Material(READER_SENTENCES, (READER,), (1.0,)),
    "second": Material(SECOND_SENTENCES, ("af_sarah", "am_michael", "bf_emma", "bm_george"), (0.8, 1.0, 1.25)),
    "held out": Material(HELD_OUT_SENTENCES, ("af_nova", "am_fenrir", "bf_lily", "bm_lewis"), (0.8, 1.0, 1.25)),
}


class Case(NamedTuple):
    """Speech of a sentence, and the fault that was planted."""

    text: str
    voice: str
    fault: str | None
    audio: Audio


class Speaker:
    """The engine `lite` with a voice, also at other speeds, as people have them."""

    def __init__(self) -> None:
        config = load_config()
        self._kokoro = Kokoro(model_file(config.home / "models", config.kokoro_onnx))
        self._engine = LiteEngine()
        self._engine._kokoro = self._kokoro
        self._prompts: dict[str, bytes] = {}
        self.sample_rate = self._engine.sample_rate

    def speak(self, text: str, voice: str, speed: float) -> tuple[Samples, list[WordTiming]]:
        """Return speech and its words."""
        if voice not in self._prompts:
            self._prompts[voice] = self._enroll_reader() if voice == READER else _stock(voice)
        prompt = self._prompts[voice]
        self._kokoro.speak = partial(Kokoro.speak, self._kokoro, speed=speed)  # type: ignore[method-assign]
        task = SpeechTask(text=text, lang="en", backend="lite", voice_id="1", prompt=prompt)
        chunks = list(self._engine.synthesize(task))
        return np.concatenate([chunk.samples for chunk in chunks]), [word for chunk in chunks for word in chunk.words]

    def _enroll_reader(self) -> bytes:
        reader = decode(files("afterwords").joinpath("data/reader.wav").read_bytes())
        return self._engine.prepare(Reference(reader.samples, reader.sample_rate), fast=True)


def _stock(name: str) -> bytes:
    """Return the prompt of an unchanged stock voice."""
    space, zeros, ones = style_space(), np.zeros(CEPSTRA, np.float32), np.ones(CEPSTRA, np.float32)
    return LiteProfile(
        style=space.voices[space.names.index(name)],
        pitch=PitchTarget(200, 200),
        equalizer_db=np.zeros(TAPS // 2 + 1, np.float32),
        cepstra=CepstralMap(zeros, ones, zeros, ones),
        gain=1.0,
        similarity=1.0,
        baseline=1.0,
        nearest_stock=name,
    ).to_bytes()


def cases(material: Material, speaker: Speaker) -> Iterator[Case]:
    """Yield each sentence as it is spoken, and with each fault."""
    rate = speaker.sample_rate
    for number, text in enumerate(material.sentences):
        voice = material.voices[(number + number // 4) % len(material.voices)]
        speed = material.speeds[number % len(material.speeds)]
        make = partial(Case, text, voice)
        samples, words = speaker.speak(text, voice, speed)
        yield make(None, Audio(samples, rate))
        edges = [*(round(word.start_s * rate) for word in words), len(samples)]
        n = len(words)
        if n == 1:
            half = len(samples) // 2
            cut = samples[:half] if number % 2 else samples[half:]
        else:
            n_cut = 2 if n >= 4 else 1
            cut = samples[edges[n_cut] :] if number % 2 else samples[: edges[n - n_cut]]
        yield make("cut", Audio(cut, rate))
        n_again = min(3, n)
        first = number % (n - n_again + 1)
        end = edges[first + n_again]
        yield make("repeated", Audio(np.concatenate([samples[:end], samples[edges[first] :]]), rate))
        gap, middle = np.zeros(round((1.5 + number % 4) * rate), np.float32), edges[n // 2]
        yield make("silent", Audio(np.concatenate([samples[:middle], gap, samples[middle:]]), rate))
        yield make("swapped", Audio(speaker.speak(swap(text, number, material.sentences), voice, speed)[0], rate))


def swap(text: str, number: int, others: Sequence[str]) -> str:
    """Return a text with two of its words exchanged, or another word instead of a single one."""
    words = text.split()
    if len(words) == 1:
        return next(other for other in others if " " not in other and other != text)
    if len(words) <= 3:
        bare = [word.strip(".,!?") for word in words]
        return " ".join([bare[-1], *bare[1:-1], bare[0]]) + "."
    first = number % (len(words) - 3)
    second = next(at for at in range(first + 2, len(words)) if words[at].casefold() != words[first].casefold())
    words[first], words[second] = words[second], words[first]
    return " ".join(words)


class Figures:
    """How many cases were reported, by the name of the material or voice, and by fault."""

    def __init__(self) -> None:
        self.reported: Counter[tuple[str, str | None]] = Counter()
        self.n: Counter[tuple[str, str | None]] = Counter()

    def add(self, group: str, fault: str | None, *, is_reported: bool) -> None:
        """Count a case."""
        self.n[group, fault] += 1
        self.reported[group, fault] += is_reported

    def found(self, group: str) -> float:
        """Return the share of faults that were found."""
        n_found, n = (sum(count[group, fault] for fault in FAULTS) for count in (self.reported, self.n))
        return n_found / n

    def row(self, group: str) -> str:
        """Return a row of the table."""
        *faults, clean = (f"{self.reported[group, fault]} of {self.n[group, fault]}" for fault in (*FAULTS, None))
        return f"| {group} | {' | '.join(faults)} | {self.found(group):.1%} | {clean} |"


def measure(names: Iterable[str]) -> tuple[Figures, float]:
    """Return the figures of materials and their voices, and the CPU seconds of checking one second of speech."""
    checker, speaker, figures = SpeechChecker(None), Speaker(), Figures()
    checker.load("en")
    speech_s = cpu_s = 0.0
    for name in names:
        for case in cases(MATERIALS[name], speaker):
            started = time.process_time()
            is_reported = bool(checker.check(case.audio, case.text, lang="en").faults)
            cpu_s += time.process_time() - started
            speech_s += case.audio.duration_s
            for group in (name, case.voice):
                figures.add(group, case.fault, is_reported=is_reported)
    return figures, cpu_s / speech_s


def table(whisper: str | None = None) -> list[str]:
    """Return the figures as Markdown, by default with whisper-tiny."""
    os.environ["AFTERWORDS_WHISPER"] = whisper or whisper_folder()
    figures, cost = measure(MATERIALS)
    groups = [*MATERIALS, *(voice for material in MATERIALS.values() for voice in material.voices)]
    return [
        "| sentences or voice | cut | repeated | silent | swapped | all faults | false alarms |",
        "|---|---|---|---|---|---|---|",
        *map(figures.row, groups),
        "",
        f"Checking a second of speech takes {cost:.2f} CPU seconds.",
    ]


if __name__ == "__main__":
    print(*table(*sys.argv[1:]), sep="\n")
