"""The human page at /openapi: every call with its fields, examples and problems, made from the document itself.

The UI plugins of flask-openapi3 are packages of JavaScript that the environment does not bring, and a page that loads
them from elsewhere would be blank behind a firewall; this one is a single file without scripts.
"""

import html
import json
from typing import Any

from serve.problems import KINDS

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}
code,pre{font:14px/1.45 ui-monospace,monospace;background:#f4f5f7;border-radius:6px}
pre{padding:.8rem;overflow:auto}code{padding:.1rem .3rem}
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.3rem .6rem;
border-bottom:1px solid #e3e6ea}h2{margin-top:2.5rem}.m{font-weight:700;color:#0b5cad}
@media(prefers-color-scheme:dark){body{background:#14171b;color:#e6e8eb}code,pre{background:#21262d}
td,th{border-color:#30363d}.m{color:#79b8ff}}
"""


def resolve(schema: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """Follow a reference into the document's components."""
    reference = schema.get("$ref") or next((s["$ref"] for s in schema.get("allOf", []) if "$ref" in s), None)
    return spec["components"]["schemas"].get(reference.rsplit("/", 1)[1], {}) if reference else schema


def kind_of(schema: dict[str, Any]) -> str:
    """A type in a few words."""
    if "$ref" in schema:
        return schema["$ref"].rsplit("/", 1)[1]
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return " | ".join(json.dumps(v) for v in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(kind_of(s) for s in schema["anyOf"] if s.get("type") != "null"))
    if schema.get("type") == "array":
        return f"list of {kind_of(schema.get('items', {}))}"
    limits = [f"{word} {schema[key]}" for key, word in LIMITS if key in schema]
    return " ".join([schema.get("format") or schema.get("type", "object"), *limits])


LIMITS = (("minimum", "≥"), ("maximum", "≤"), ("minLength", "at least"), ("maxLength", "at most"), ("pattern", "like"))


def fields(schema: dict[str, Any], spec: dict[str, Any], prefix: str = "", depth: int = 0) -> list[str]:
    """Table rows of a schema, nested objects below their field."""
    rows, required = [], schema.get("required", [])
    for name, part in schema.get("properties", {}).items():
        must = "required" if name in required else ""
        text = html.escape(part.get("description", ""))
        rows.append(
            f"<tr><td><code>{html.escape(prefix + name)}</code></td><td>{html.escape(kind_of(part))}</td>"
            f"<td>{must}</td><td>{text}</td></tr>"
        )
        many = part.get("type") == "array"
        inner = resolve(part.get("items", {}) if many else part, spec)
        if inner is not part and inner.get("properties") and depth < 3:
            rows += fields(inner, spec, f"{prefix}{name}{'[]' if many else ''}.", depth + 1)
    return rows


def call(path: str, method: str, operation: dict[str, Any], spec: dict[str, Any]) -> str:
    """The section of one call."""
    parts = [f"<h2><span class=m>{method.upper()}</span> <code>{html.escape(path)}</code></h2>"]
    parts.append(
        f"<p>{html.escape(operation.get('summary') or '')}. {html.escape(operation.get('description') or '')}</p>"
    )
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content:
        example = content.get("example")
        if example is not None:
            text = json.dumps(example, indent=1, ensure_ascii=False)
            parts.append(f"<pre>{html.escape(curl(method, path, text))}</pre>")
        rows = "".join(fields(resolve(content["schema"], spec), spec))
        parts.append(f"<table><tr><th>field<th>type<th><th></tr>{rows}</table>")
    answers = "".join(
        f"<tr><td><code>{status}</code></td><td>{html.escape(answer.get('description', ''))}</td></tr>"
        for status, answer in sorted(operation.get("responses", {}).items())
    )
    parts.append(f"<table><tr><th>status<th>meaning</tr>{answers}</table>")
    good = operation.get("responses", {}).get("200") or operation.get("responses", {}).get("202") or {}
    shape = resolve(good.get("content", {}).get("application/json", {}).get("schema", {}), spec)
    if shape.get("properties"):
        parts.append(f"<table><tr><th>answer<th>type<th><th></tr>{''.join(fields(shape, spec))}</table>")
    return "".join(parts)


def curl(method: str, path: str, body: str) -> str:
    """A command that makes the call."""
    quoted = body.replace("'", "'\\''")
    other = "" if method == "post" else f"-X {method.upper()} "
    return f"curl -s {other}http://127.0.0.1:8000{path} -H 'Content-Type: application/json' -d '{quoted}'"


def page(spec: dict[str, Any]) -> str:
    """The whole page."""
    calls = "".join(
        call(path, method, operation, spec)
        for path, item in spec["paths"].items()
        for method, operation in item.items()
        if method in ("get", "post", "put", "delete")
    )
    problems = "".join(
        f"<tr id=problem-{slug}><td><code>{slug}</code></td><td>{status}</td><td>{html.escape(title)}</td>"
        f"<td>{html.escape(remedy)}</td></tr>"
        for slug, (status, title, remedy) in KINDS.items()
    )
    info = spec["info"]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(info['title'])}</title>"
        f"<meta name=viewport content='width=device-width'><style>{STYLE}</style>"
        f"<h1>{html.escape(info['title'])} {html.escape(info['version'])}</h1>"
        f"<p>{html.escape(info.get('description') or '')} The document for machines: "
        f"<a href='/openapi/openapi.json'>/openapi/openapi.json</a>.</p>{calls}"
        f"<h2 id=problems>Problems</h2><p>Every error is <code>application/problem+json</code>: type, title, status, "
        f"detail, errors (path and reason) and request_id.</p>"
        f"<table><tr><th>type<th>status<th>title<th>what to do</tr>{problems}</table></html>"
    )
