"""What the README shows, works: its requests are answered by the service as it says."""

import json
import re
from pathlib import Path

import pytest

from serve.app import create_app
from smartrouter.core.settings import Settings
from smartrouter.feedback.store import upgrade

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
CURLS = re.findall(r"curl -s http://127\.0\.0\.1:8000(\S+) -H 'Content-Type: application/json' -d '(.*?)'", TEXT, re.S)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    settings = Settings(home=tmp_path_factory.mktemp("home"), params=ROOT / "params")
    upgrade(settings.store)
    app = create_app(settings)
    yield app.test_client()
    app.extensions["smartrouter"].close()


def test_the_worked_example_is_answered_in_the_form_that_is_shown(client):
    (predict, payment), (feedback, event) = CURLS
    shown = json.loads(re.search(r"```json\n(.*?)```", TEXT, re.S).group(1))
    answer = client.post(predict, json=json.loads(payment))
    assert answer.status_code == 200
    found = answer.get_json()
    assert found.keys() == shown.keys() and found["decision"].keys() == shown["decision"].keys()
    assert [r.keys() for r in found["ranking"]] == [r.keys() for r in shown["ranking"]]
    told = client.post(feedback, json=json.loads(event) | {"prediction_id": found["prediction_id"]})
    assert told.status_code == 202, told.get_json()


@pytest.mark.parametrize("path", ["/openapi", "/openapi/openapi.json", "/health", "/metrics"])
def test_the_pages_that_are_named_exist(client, path):
    assert path in TEXT and client.get(path).status_code == 200


def test_links_lead_to_files():
    names = [name for name in re.findall(r"\]\(([^)#:]+)\)", TEXT)]
    assert names and all((ROOT / name).exists() for name in names)


def test_nothing_is_left_to_be_filled_in():
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    pages += sorted((ROOT / "docs").rglob("*.md"))
    assert not [page.name for page in pages if re.search(r"@@|TODO|FIXME|XXX", page.read_text(encoding="utf-8"))]
