"""A full card number anywhere in a request is refused with 422, and is in no log, no store and no answer.

The numbers are made here from a prefix and a check digit: no file of this repository holds one.
"""

import json
import re
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.body import suspect
from serve.schemas import EXAMPLE
from smartrouter.core.cards import CardNumberRefused, luhn, refuse_card_numbers

PREDICT, FEEDBACK, BATCH = "/api/v1/ml/predict", "/api/v1/ml/feedback", "/api/v1/ml/feedback/batch"
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def with_check_digit(digits: str) -> str:
    """`digits` and the digit that makes them pass Luhn."""
    return next(digits + d for d in string.digits if luhn(digits + d))


def spaced(number: str, gap: str) -> str:
    return gap.join(re.findall(".{1,4}", number)) if gap else number


numbers = st.builds(
    lambda first, rest: with_check_digit(first + rest),
    st.sampled_from(["4", "51", "37", "62", "506"]),
    st.text(alphabet="0123456789", min_size=11, max_size=13),
).filter(lambda n: len(set(n)) > 1 and 13 <= len(n) <= 19)
written = st.builds(spaced, numbers, st.sampled_from(["", " ", "-", "  "]))
paths = st.sampled_from(
    [
        ("transaction_id",),
        ("merchant_id",),
        ("order", "order_id"),
        ("order", "channel"),
        ("card", "bin"),
        ("card", "bank"),
        ("card", "last_four"),
        ("user", "user_id"),
        ("geo", "city"),
        ("device", "browser"),
        ("attempt", "attempt_id"),
        ("no_such_field",),
        ("order", "no_such_field"),
    ]
)


def base():
    return {
        "transaction_id": "tx-1",
        "merchant_id": "volaris",
        "order": {"amount": 2450.0, "currency": "MXN"},
        "card": {"bin": "415231", "brand": "VISA"},
    }


def refused(answer, number):
    """The answer refuses, and holds no digit run of the number."""
    assert answer.status_code == 422, answer.text
    assert answer.json["type"].endswith("card-number")
    digits = re.sub(r"\D", "", number)
    said = json.dumps({**answer.json, "request_id": ""})
    assert digits not in re.sub(r"[ \-]", "", said)
    assert digits[6:-4] not in said


@QUICK
@given(path=paths, number=written, around=st.sampled_from(["{}", "pay {} now", "{}.", "n:{}"]))
def test_in_any_field(client, path, number, around):
    body = base()
    inner = body
    for name in path[:-1]:
        inner = inner.setdefault(name, {})
    inner[path[-1]] = around.format(number)
    refused(client.post(PREDICT, json=body), number)


@QUICK
@given(number=numbers)
def test_as_a_number_as_a_key_and_in_a_list(client, number):
    refused(client.post(PREDICT, json=base() | {"extra": int(number)}), number)
    refused(client.post(PREDICT, json=base() | {number: 1}), number)
    refused(client.post(PREDICT, json=base() | {"deep": [[{"a": [number]}]]}), number)
    refused(client.post(PREDICT, json=base() | {"eligible_processors": [number]}), number)


@QUICK
@given(number=written)
def test_escaped_or_in_other_digits(client, number):
    escaped = "".join(f"\\u{ord(c):04x}" for c in number)
    text = json.dumps(base())[:-1] + f', "note": "{escaped}"}}'
    refused(client.post(PREDICT, data=text, content_type="application/json"), number)
    wide = number.translate({ord(d): 0xFF10 + int(d) for d in string.digits})
    refused(client.post(PREDICT, json=base() | {"note": wide}), number)


@QUICK
@given(number=numbers)
def test_in_the_address_and_in_headers(client, number):
    refused(client.get(f"/{number}"), number)
    refused(client.get(f"/health?card={number}"), number)
    refused(client.get(f"/health?{number}=1"), number)
    refused(client.get("/health?card=" + "%20".join(re.findall(".{1,4}", number))), number)
    refused(client.get("/health?card=" + "".join(f"%{ord(c):02x}" for c in number)), number)
    for name in ("X-Request-ID", "User-Agent", "X-Note", "Referer"):
        refused(client.get("/health", headers={name: f"a {number}"}), number)


@QUICK
@given(number=written)
def test_in_feedback(client, number):
    event = {"prediction_id": "p1", "event_id": number, "processor": "MIT", "status": "approved"}
    refused(client.post(FEEDBACK, json=event), number)
    refused(client.post(BATCH, json={"items": [event]}), number)


def test_nothing_of_it_stays(client, parts, tmp_path, logfile):
    number = with_check_digit("411111222233344")
    for body in (base() | {"transaction_id": number}, base() | {number: number}):
        client.post(PREDICT, json=body)
        client.post(PREDICT, data=json.dumps(body)[:-2], content_type="application/json")  # and not even JSON
    client.post(FEEDBACK, json={"prediction_id": number, "event_id": number, "processor": "MIT", "status": "error"})
    client.get(f"/{number}", headers={"X-Request-ID": number})
    metrics = client.get("/metrics").data
    parts.merchants.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"store.db", "access.log"} <= {path.name for path in files}
    for content in [metrics, *(path.read_bytes() for path in files)]:
        assert number.encode() not in content
        assert number[3:-3].encode() not in content
    assert logfile.stat().st_size > 0


@pytest.mark.parametrize(
    "identifier",
    ["o-1234567890123", "TX20260415180000", "0198a1b2c3d4e5f60718", "4f9a2b1c-77de", "2026-04-15T18:00:00Z"],
)
def test_ids_with_letters_pass(client, identifier):
    assert client.post(PREDICT, json=base() | {"transaction_id": identifier}).status_code == 200


@pytest.mark.parametrize("front", ["x", "cardNumber_", "ref", "\uff34"])
@pytest.mark.parametrize("digits", [13, 16, 19])
def test_a_field_name_with_a_long_number_is_not_echoed_also_behind_letters(client, front, digits):
    number = ("4111" + "2" * 15)[:digits]
    for body in (base() | {front + number: 1}, base() | {front + spaced(number, "-"): {"a": 1}}):
        answer = client.post(PREDICT, json=body)
        assert answer.status_code == 422 and answer.json["errors"][0]["path"] == "$.<key>"
        assert "2222" not in answer.text
    assert client.post(PREDICT, json=base() | {"x4111": 1}).json["errors"][0]["path"] == "$.x4111"


def test_a_field_name_beside_a_card_number_is_not_echoed_either(client):
    number = with_check_digit("411111222233344")
    answer = client.post(PREDICT, json=base() | {f"x{number}": number})
    assert answer.status_code == 422 and number[3:-3] not in answer.text


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=30)
    | written
    | numbers.map(int),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20) | written, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(value=json_values, ascii_only=st.booleans(), number=numbers)
def test_no_text_with_a_card_number_escapes_the_quick_look(value, ascii_only, number):
    """`suspect` may send too much to the thorough search, never too little."""
    for document in (value, [value, float(number)], {"a": f"x {number}"}):
        text = json.dumps(document, ensure_ascii=ascii_only)
        try:
            refuse_card_numbers(json.loads(text))
        except CardNumberRefused:
            assert suspect(text)


def test_ordinary_payments_take_the_quick_way():
    assert not suspect(json.dumps(EXAMPLE))
