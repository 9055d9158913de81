"""Schemathesis asks the application what its own document promises, with right and with wrong requests."""

import importlib.util
import os
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, checks

from serve.app import create_app
from serve.logs import Log
from smartrouter.core.settings import Settings
from smartrouter.feedback.store import upgrade

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("serve_conftest", Path(__file__).with_name("conftest.py"))
stand_ins = importlib.util.module_from_spec(spec)
spec.loader.exec_module(stand_ins)

PROMISES = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
]


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """The document of a service with a stand-in model, asked without a network."""
    home = tmp_path_factory.mktemp("api")
    used = Settings(home=home, params=ROOT / "params", deadline_ms=5000.0)
    upgrade(used.store)
    stand_ins.write_champion(home, "1")
    sink = os.open(os.devnull, os.O_WRONLY)
    app = create_app(used, decide=stand_ins.fake_decide, load_model=stand_ins.fake_load, log=Log("error", sink))
    yield schemathesis.openapi.from_wsgi("/openapi/openapi.json", app)
    app.extensions["smartrouter"].close()
    os.close(sink)


CALLS = [
    ("POST", "/api/v1/ml/predict"),
    ("POST", "/api/v1/ml/feedback"),
    ("POST", "/api/v1/ml/feedback/batch"),
    ("GET", "/api/v1/processors"),
    ("POST", "/api/v1/processors/{code}/override"),
    ("DELETE", "/api/v1/processors/{code}/override"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
]


def test_every_call_of_the_document_is_asked(api):
    assert {(found.ok().method.upper(), found.ok().path) for found in api.get_all_operations()} == set(CALLS)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("method", "path"), CALLS, ids=str)
def test_the_service_does_what_its_document_says(api, method, path, mode):
    operation = api[path][method]
    each_alone = path.endswith("/batch")  # a wrong event spoils itself only: 207 with its problem in its place
    promised = [check for check in PROMISES if not (each_alone and check is checks.negative_data_rejection)]

    @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case):
        response = case.call()
        assert response.status_code < 500
        case.validate_response(response, checks=promised)

    try:
        ask()
    except Unsatisfiable:
        assert method == "GET"  # a call without input has no wrong input
