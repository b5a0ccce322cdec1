"""Traces with OpenTelemetry: spans of requests and attempts, if `AFTERWORDS_TRACING` is set.

Otherwise nothing of OpenTelemetry is imported. Spans have IDs, routes, statuses and backends, never a text, a name or a
key; docs/operate.md lists them. The variables `OTEL_…` say where spans go.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from afterwords import __version__
from afterwords.errors import AfterwordsError, ServerSetupError, pip_install

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Span

log = logging.getLogger("afterwords.server")

FLUSH_S: Final = 2.0
"""How long the last spans may take when the server stops."""
PACKAGES: Final = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")

Attributes: TypeAlias = Mapping[str, str | bool | int | float]
Fact: TypeAlias = str | bool | int | float | None
Kind: TypeAlias = Literal["SERVER", "CONSUMER", "INTERNAL"]


def check_installed() -> None:
    """Raise ServerSetupError if the packages are missing."""
    try:
        is_installed = all(find_spec(name) for name in PACKAGES)
    except ModuleNotFoundError:  # not even their parent
        is_installed = False
    if not is_installed:
        raise ServerSetupError(
            "AFTERWORDS_TRACING needs OpenTelemetry, which is not installed.", hint=f"install it: {pip_install('otel')}"
        )


class Tracer:
    """Records spans, and sends them to a collector from a thread.

    It has a provider of its own: an application that includes the server keeps its tracing.

    Args:
        service: Name in the traces, unless OTEL_SERVICE_NAME is set.
    """

    def __init__(self, service: str) -> None:
        check_installed()
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        name = os.environ.get("OTEL_SERVICE_NAME") or service
        resource = Resource.create({"service.name": name, "service.version": __version__})
        self._exporter = OTLPSpanExporter()
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(_logging_failures(self._exporter)))
        self._tracer = self._provider.get_tracer("afterwords", __version__)

    def start(
        self,
        name: str,
        *,
        kind: Kind = "INTERNAL",
        parent: str | None = None,
        began_at: datetime | None = None,
        attributes: Attributes | None = None,
    ) -> Span:
        """Return a new span, a child of the current one, or of `parent`, a traceparent."""
        from opentelemetry.trace import SpanKind

        return self._tracer.start_span(
            name,
            context=_context_of(parent) if parent else None,
            kind=SpanKind[kind],
            start_time=round(began_at.timestamp() * 1e9) if began_at else None,
            attributes=attributes,
        )

    def close(self) -> None:
        """Send what is left, within FLUSH_S."""
        hurry = threading.Timer(FLUSH_S, self._exporter.shutdown)  # otherwise it tries again for 10 s
        hurry.start()
        self._provider.shutdown()
        hurry.cancel()


TRACER: Final[ContextVar[Tracer | None]] = ContextVar("tracer", default=None)
"""The tracer of the running server; None if tracing is off."""


@contextmanager
def span(name: str, *, kind: Kind = "INTERNAL", parent: str | None = None, **facts: Fact) -> Iterator[None]:
    """Record the block as a span. Of an error only its code is recorded.

    Args:
        parent: The traceparent of the span that it belongs to; None: the current one.
        facts: Attributes, without the prefix `afterwords.`.
    """
    if (tracer := TRACER.get()) is None:
        yield
        return
    from opentelemetry.trace import StatusCode, use_span

    span = tracer.start(name, kind=kind, parent=parent, attributes=_attributes(facts))
    with use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield
        except Exception as error:
            span.set_attribute("error.type", error.code if isinstance(error, AfterwordsError) else type(error).__name__)
            span.set_status(StatusCode.ERROR)
            raise


def record(name: str, *, parent: str | None, began_at: datetime, **facts: Fact) -> None:
    """Record a span that ends now."""
    if (tracer := TRACER.get()) is not None:
        tracer.start(name, parent=parent, began_at=began_at, attributes=_attributes(facts)).end()


def note(event: str = "", **facts: Fact) -> None:
    """Add an event and attributes to the current span."""
    if TRACER.get() is not None:
        from opentelemetry.trace import get_current_span

        if event:
            get_current_span().add_event(event)
        get_current_span().set_attributes(_attributes(facts))


def current_traceparent() -> str | None:
    """Return the current span as a traceparent header of W3C Trace Context. None: there is none."""
    if TRACER.get() is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


class RequestSpan:
    """The span of a request: the current one of its task until it ends.

    Args:
        traceparents: The traceparent headers. One counts, unless the application that includes the server has a span.
    """

    def __init__(self, tracer: Tracer, method: str, route: str, traceparents: Sequence[bytes]) -> None:
        from opentelemetry.context import attach
        from opentelemetry.trace import get_current_span, set_span_in_context

        TRACER.set(tracer)
        is_inner = get_current_span().get_span_context().is_valid
        parent = traceparents[0].decode("latin-1") if len(traceparents) == 1 and not is_inner else None
        facts = {"http.request.method": method, "http.route": route}
        self._span = tracer.start(f"{method} {route}", kind="SERVER", parent=parent, attributes=facts)
        self._token = attach(set_span_in_context(self._span))

    def end(self, status: int, *, is_recorded: bool, **facts: Fact) -> None:
        from opentelemetry.context import detach
        from opentelemetry.trace import StatusCode

        detach(self._token)
        if is_recorded:
            self._span.set_attributes({"http.response.status_code": status, **_attributes(facts)})
            if status >= 500:
                self._span.set_status(StatusCode.ERROR)
            self._span.end()


def _context_of(traceparent: str) -> Context:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}, context=Context())


def _attributes(facts: Mapping[str, Fact]) -> Attributes:
    return {f"afterwords.{name}": value for name, value in facts.items() if value is not None}


def _logging_failures(exporter: Any) -> SpanExporter:
    """Return an exporter that logs one line when spans can't be sent, and one when they can again."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class Exporter(SpanExporter):
        is_failing = False

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            try:
                result: SpanExportResult = exporter.export(spans)
            except Exception:  # noqa: BLE001 - whatever ails the exporter, the server goes on
                result = SpanExportResult.FAILURE
            is_failing = result is not SpanExportResult.SUCCESS
            if is_failing and not self.is_failing:
                log.warning("traces can't be sent: check OTEL_EXPORTER_OTLP_ENDPOINT; the server goes on without them")
            elif self.is_failing and not is_failing:
                log.info("traces are sent again")
            self.is_failing = is_failing
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

    return Exporter()
