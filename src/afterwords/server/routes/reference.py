"""The page at `/docs`: the OpenAPI document as HTML, without scripts, and with its one stylesheet inside."""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from html import escape
from typing import Any, Final

from fastapi import Request
from fastapi.responses import Response

from afterwords.server.routes.responses import BINARY

SCHEMAS: Final = "#/components/schemas/"
LOCATIONS: Final = {"path": "in the path", "query": "in the query", "header": "header"}
BASE_STYLE: Final = """
:root { color-scheme: light dark; --text: light-dark(#1c2128, #dfe3e8); --soft: light-dark(#59636e, #9aa4af);
    --page: light-dark(#fff, #14171b); --panel: light-dark(#f4f6f8, #1d2126); --line: light-dark(#dde2e7, #30363d);
    --link: light-dark(#0a58ca, #7ab3ff); --delete: light-dark(#b3261e, #ff8f86) }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--page); color: var(--text);
    font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word }
a { color: var(--link); text-decoration: none }
a:hover, a:focus-visible { text-decoration: underline }
h1, h2, h3, h4 { line-height: 1.25; margin: 0 }
h1 { font-size: 1.75rem }
h2 { font-size: 1.35rem; margin-top: 2.5rem }
h3 { font-size: 1.05rem }
small { color: var(--soft); font-size: .85em; font-weight: normal }
code, pre { font-family: ui-monospace, monospace; font-size: .9em }
p { margin: .5rem 0; max-width: 46rem }
p code { background: var(--panel); border-radius: .2rem; padding: .05rem .25rem }
pre { background: var(--panel); border-radius: .4rem; margin: .75rem 0; overflow-x: auto; padding: .75rem }
"""
"""The style of all pages of the server."""
STYLESHEET: Final = (
    BASE_STYLE
    + """
:root { --get: light-dark(#0a6b3b, #5fd39a); --post: light-dark(#0a58ca, #7ab3ff); --put: light-dark(#8a5300, #e3b341) }
html { scroll-padding-top: 1rem }
h2 { text-transform: capitalize }
h3 a, nav h2 a { color: inherit }
h4 { font-size: .9rem; margin-top: 1rem }
dt, nav li, b { font-family: ui-monospace, monospace; font-size: .9em }
code code, h3 code, dt code { font-size: 1em }
dd code { background: var(--panel); border-radius: .2rem; padding: .05rem .25rem }
article { border-top: 1px solid var(--line); margin-top: 1.25rem; padding-top: 1.25rem }
article:target h3 { background: var(--panel); outline: .35rem solid var(--panel) }
dl { display: grid; gap: .35rem 1.25rem; grid-template-columns: minmax(3rem, max-content) 1fr; margin: .5rem 0 }
dt { font-weight: 600; max-width: 14rem }
dd { margin: 0; min-width: 0 }
b { color: var(--get); display: inline-block }
b.post { color: var(--post) }
b.put, b.patch { color: var(--put) }
b.delete { color: var(--delete) }
nav { margin-top: 1.5rem }
nav h2 { font-size: .95rem; margin: 1rem 0 .25rem }
nav ul { list-style: none; margin: 0; padding: 0 }
nav li { font-size: .8rem }
nav li a { color: inherit; display: block; padding: .2rem 0 .2rem 4.2em; text-indent: -4.2em }
nav b { font-size: 1em; text-indent: 0; width: 4.2em }
main > h2:first-child { margin-top: 2rem }
@media (max-width: 40rem) {
    dl { display: block }
    dd { margin: 0 0 .6rem }
    dt { max-width: none }
}
@media (min-width: 60rem) {
    body { display: grid; gap: 0 3rem; grid-template-columns: 20rem minmax(0, 1fr) }
    header { grid-column: 1 / -1 }
    nav { align-self: start; max-height: 100vh; overflow-y: auto; padding-bottom: 2rem; position: sticky; top: 0 }
}
"""
)

Json = Mapping[str, Any]


def render_page(document: Json, *, document_url: str | None = None) -> bytes:
    """Return the reference of an API as HTML.

    Args:
        document: The OpenAPI document.
        document_url: URL of the same document as JSON, relative to the page.
    """
    info = document["info"]
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    tags = list(dict.fromkeys(_tag(operation) for *_, operation in operations))
    groups = {tag: [each for each in operations if _tag(each[2]) == tag] for tag in tags}
    schemas = document["components"]["schemas"]
    link = f' This page is also an <a href="{escape(document_url)}">OpenAPI document</a>.' if document_url else ""
    return "".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(info['title'])} API</title><style>{STYLESHEET}</style></head><body>",
            f"<header><h1>{escape(info['title'])} API <small>{escape(info['version'])}</small></h1>",
            f"<p>{_text(info['description'])}{link}</p></header>",
            "<nav>",
            *(_contents(tag, group) for tag, group in groups.items()),
            '<h2><a href="#schemas">schemas</a></h2></nav><main>',
            '<h2 id="credentials">credentials</h2><p>Sent as <code>Authorization: Bearer …</code>.</p>',
            _list((name, _text(scheme["description"])) for name, scheme in _schemes(document).items()),
            *(_group(tag, group, schemas) for tag, group in groups.items()),
            '<h2 id="schemas">schemas</h2>',
            *(_schema_section(name, schema) for name, schema in schemas.items()),
            "</main></body></html>",
        )
    ).encode()


def page_response(request: Request, page: bytes) -> Response:
    """Return the page, or 304 if the client has it. The policy allows nothing but its stylesheet."""
    style = base64.b64encode(sha256(STYLESHEET.encode()).digest()).decode()
    etag = f'"{sha256(page).hexdigest()[:32]}"'
    headers = {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{style}'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'",
        "ETag": etag,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(page, headers=headers, media_type="text/html")


def _schemes(document: Json) -> Json:
    found: Json = document["components"].get("securitySchemes", {})
    return found


def _tag(operation: Json) -> str:
    return str(operation.get("tags", ["other"])[0])


def _contents(tag: str, group: Sequence[tuple[str, str, Json]]) -> str:
    links = (
        f'<li><a href="#{escape(operation["operationId"])}">{_method(method)} {_path(path)}</a></li>'
        for path, method, operation in group
    )
    return f'<h2><a href="#tag-{escape(tag)}">{escape(tag)}</a></h2><ul>{"".join(links)}</ul>'


def _method(method: str) -> str:
    return f'<b class="{method}">{method.upper()}</b>'


def _path(path: str) -> str:
    """Return a path, which may wrap at its slashes."""
    return escape(path).replace("/", "<wbr>/").removeprefix("<wbr>")


def _group(tag: str, group: Sequence[tuple[str, str, Json]], schemas: Json) -> str:
    return f'<h2 id="tag-{escape(tag)}">{escape(tag)}</h2>' + "".join(_operation(*each, schemas) for each in group)


def _operation(path: str, method: str, operation: Json, schemas: Json) -> str:
    name = escape(operation["operationId"])
    credentials = " or ".join(
        f'<a href="#credentials">{escape(scheme)}</a>' + (f" with the scope {_codes(scopes)}" if scopes else "")
        for required in operation.get("security", ())
        for scheme, scopes in required.items()
    )
    parts = [
        f'<article id="{name}"><h3><a href="#{name}">{_method(method)} <code>{_path(path)}</code></a></h3>',
        f"<p>{_text(operation.get('description', ''))}</p>",
        f"<p>Credential: {credentials or 'none'}.</p>",
        f"<pre>{escape(_curl(path, method, operation, schemas))}</pre>",
    ]
    if parameters := operation.get("parameters"):
        parts.append("<h4>Parameters</h4>")
        parts.append(_list(map(_parameter, parameters)))
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<h4>Body <small>{escape(media_type)}</small></h4>")
        parts.append(_schema(_resolve(content["schema"], schemas)))
    parts.append("<h4>Responses</h4>")
    responses = sorted(operation["responses"].items())
    parts.append(_list((status, _response(response)) for status, response in responses))
    return "".join((*parts, "</article>"))


def _curl(path: str, method: str, operation: Json, schemas: Json) -> str:
    """Return an example of a request, with what is required."""
    url = re.sub(r"\{(\w+)\}", lambda name: f"${name[1].upper()}", path)
    lines = [f'curl{"" if method in ("get", "post") else f" -X {method.upper()}"} "$URL{url}"']
    if operation.get("security"):
        lines.append('-H "Authorization: Bearer $KEY"')
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = _resolve(content["schema"], schemas)
        properties = {name: schema.get("properties", {}).get(name, {}) for name in schema.get("required", ())}
        if media_type == "application/json":
            body = dict.fromkeys(properties, "…")
            lines += [
                f"-H {shlex.quote(f'Content-Type: {media_type}')}",
                f"-d '{json.dumps(body, ensure_ascii=False)}'",
            ]
        elif media_type.startswith("multipart/"):
            lines += [
                f"-F {name}={'@FILE' if part.items() >= BINARY.items() else '…'}" for name, part in properties.items()
            ]
        else:
            lines += [f"-H {shlex.quote(f'Content-Type: {media_type}')}", "--data-binary @FILE"]
    return " \\\n    ".join(lines)


def _resolve(schema: Json, schemas: Json) -> Json:
    """Return the schema that another one refers to, if it does; of alternatives the first."""
    if "anyOf" in schema:
        return _resolve(schema["anyOf"][0], schemas)
    found: Json = schemas[schema["$ref"].removeprefix(SCHEMAS)] if "$ref" in schema else schema
    return found


def _parameter(parameter: Json) -> tuple[str, str]:
    location = str(parameter["in"])
    required = "required" if parameter.get("required") else ""
    return _field(parameter["name"], parameter["schema"], LOCATIONS.get(location, location), required)


def _response(response: Json) -> str:
    content = response.get("content", {})
    kinds = dict.fromkeys(
        escape(media_type) if kind in ("", "binary") else kind
        for media_type, body in content.items()
        for kind in [_type(body.get("schema", {}))]
    )
    description = response["description"]
    if codes := re.fullmatch(r"Codes: ([a-z0-9_, ]+)\.", description):  # of errors, which have one schema
        return _codes(codes[1].split(", "))
    return f"{_text(description)} <small>{', '.join(kinds)}</small>"


def _schema_section(name: str, schema: Json) -> str:
    anchor = f"schema-{escape(name)}"
    return f'<article id="{anchor}"><h3><a href="#{anchor}">{escape(name)}</a></h3>{_schema(schema)}</article>'


def _schema(schema: Json) -> str:
    """Return the description and the fields of a schema, or its type."""
    description = f"<p>{_text(schema['description'])}</p>" if "description" in schema else ""
    if "properties" not in schema:
        return f"{description}<p>{_type(schema)}</p>"
    required = schema.get("required", ())
    fields = (
        _field(name, field, "required" if name in required else "") for name, field in schema["properties"].items()
    )
    return description + _list(fields)


def _field(name: str, schema: Json, *facts: str) -> tuple[str, str]:
    """Return name and description of a field or parameter."""
    small = ", ".join(fact for fact in (_type(schema), *facts, *_limits(schema)) if fact)
    return escape(name), f"{_text(schema.get('description', ''))} <small>{small}</small>"


def _type(schema: Json) -> str:
    if "$ref" in schema:
        name = escape(schema["$ref"].removeprefix(SCHEMAS))
        return f'<a href="#schema-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"])
    if "enum" in schema:
        return _codes(schema["enum"])
    if "const" in schema:
        return _codes([schema["const"]])
    if schema.get("type") == "array":
        return f"array of {_type(schema['items'])}"
    return escape(str(schema.get("format") or schema.get("type", "")))


def _limits(schema: Json) -> Iterator[str]:
    """Yield the limits of a value, and what it is if it is omitted."""
    for option in [schema, *schema.get("anyOf", ())]:
        for name, words in (
            ("minimum", "at least {:,g}"),
            ("maximum", "at most {:,g}"),
            ("exclusiveMaximum", "below {:,g}"),
            ("minLength", "at least {:,} characters"),
            ("maxLength", "at most {:,} characters"),
        ):
            if name in option:
                yield words.format(option[name])
    if schema.get("default") is not None:
        yield f"default {_codes([schema['default']])}"


def _list(entries: Iterator[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{name}</dt><dd>{text}</dd>' for name, text in entries)}</dl>"


def _codes(values: Sequence[object]) -> str:
    return ", ".join(
        f"<code>{escape(value if isinstance(value, str) else json.dumps(value))}</code>" for value in values
    )


def _text(text: str) -> str:
    """Return a description, in which only code is marked up."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
