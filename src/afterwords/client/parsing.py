"""What came back, as the models that everyone else uses.

What a server tells is read leniently, so that a newer one may say more, and checked strictly, so that a wrong one is
found.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from urllib.parse import unquote

from pydantic import ValidationError

from afterwords.client.requests import Answer, json_of, strange
from afterwords.errors import JobCancelledError, JobFailedError, TextWarning
from afterwords.models import Job, JobStatus, Model, Voice

M = TypeVar("M", bound=Model)

_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,200}")
_NEXT: Final = re.compile(r'>\s*;\s*rel="?next"?')


@dataclass(frozen=True, slots=True)
class Sound:
    """Audio as it came.

    Attributes:
        stream: the open response, where it is still to be read.
        is_cached: whether it was spoken before.
        left_out: words of the text that the backend does not speak.
    """

    data: bytes = field(repr=False)
    voice_id: str | None
    backend: str | None
    job_id: str | None = None
    is_cached: bool = False
    left_out: tuple[str, ...] = field(default=(), repr=False)
    stream: Any = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of a request to speak: a job, and, where it was there at once, the sound."""

    job: Job
    backend: str | None
    sound: Sound | None = None
    left_out: tuple[str, ...] = field(default=(), repr=False)


def given(**fields: Any) -> dict[str, Any]:
    """The fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}


def path_of(folder: str, identifier: str) -> str:
    """The address of one item; what is no identifier is asked for as one that nobody has, and leads nowhere else."""
    return f"{folder}/{identifier if _ID.fullmatch(identifier) else '-'}"


def has_next(answer: Answer) -> bool:
    return _NEXT.search(answer.headers.get("link", "")) is not None


def object_of(answer: Answer) -> dict[str, Any]:
    body = json_of(answer)
    if not isinstance(body, dict):
        raise strange(answer, "it is no JSON object")
    return body


def array_of(answer: Answer) -> list[dict[str, Any]]:
    body = json_of(answer)
    if not isinstance(body, list) or not all(isinstance(item, dict) for item in body):
        raise strange(answer, "it is no list of JSON objects")
    return body


def shaped(answer: Answer, model: type[M]) -> M:
    return checked(model, object_of(answer), answer)


def all_shaped(answer: Answer, model: type[M]) -> list[M]:
    return [checked(model, item, answer) for item in array_of(answer)]


def checked(model: type[M], told: Mapping[str, Any], answer: Answer) -> M:
    """What was told, as far as the model knows it."""
    try:
        return model.model_validate({name: told[name] for name in model.model_fields if name in told})
    except ValidationError as error:
        fields = ", ".join(sorted({str(e["loc"][0]) for e in error.errors() if e["loc"]}))
        raise strange(answer, f"its {model.__name__} has wrong or missing fields ({fields})") from None


def voice_of(told: Mapping[str, Any], answer: Answer) -> Voice:
    """A voice: a server tells of its reference by fields that begin with `ref_`."""
    reference = {
        "sha256": told.get("ref_sha256"),
        "duration_s": told.get("ref_duration_s"),
        "sample_rate": told.get("ref_sample_rate"),
    }
    facts = {**told, "metadata": _metadata(told.get("metadata"))}
    facts["reference"] = {**reference, "grade": told.get("ref_grade")} if all(reference.values()) else None
    if facts.get("lang") is None:
        facts["lang"] = "en"
    return checked(Voice, facts, answer)


def _metadata(told: Any) -> dict[str, Any]:
    """Free fields; the hosted service keeps them as a JSON string."""
    if isinstance(told, str):
        try:
            told = json.loads(told)
        except (ValueError, RecursionError):
            return {}
    return told if isinstance(told, dict) else {}


def job_of(answer: Answer) -> Job:
    told = object_of(answer)
    if told.get("job_id") is None:
        raise strange(answer, "its Job has no job_id")
    return checked(Job, told, answer)


def ready(job: Job) -> Job:
    if job.status is JobStatus.FAILED:
        raise JobFailedError(job.job_id, reason=job.error or "no reason was given")
    if job.status is JobStatus.CANCELLED:
        raise JobCancelledError(job.job_id)
    return job


def accepted(answer: Answer, voice_id: str) -> Submitted:
    job = job_of(answer).model_copy(update={"voice_id": voice_id})
    return Submitted(job, answer.headers.get("x-backend"), left_out=left_out_of(answer))


def left_out_of(answer: Answer) -> tuple[str, ...]:
    """The words of a text that are not spoken; a warning says that there are some, and not which."""
    told = answer.headers.get("x-left-out", "")
    words = tuple(unquote(word) for word in told.split(",") if word)
    if words:
        who = answer.headers.get("x-backend", "The server")
        warnings.warn(f"{who} leaves out words of the text; `left_out` has them.", TextWarning, stacklevel=2)
    return words


def sound_of(answer: Answer, voice_id: str) -> Sound:
    headers = answer.headers
    return Sound(
        answer.body,
        headers.get("x-voice-id", voice_id),
        headers.get("x-backend"),
        headers.get("x-job-id"),
        is_cached=headers.get("x-cache", "").upper() == "HIT",
        left_out=left_out_of(answer),
        stream=answer.stream,
    )
