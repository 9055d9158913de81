"""The service tells its alert targets from one worker, beside the payments, and shows no secret of theirs."""

import importlib.util
import time
from pathlib import Path

import pytest

from serve.run import check
from smartrouter.feedback.store import upgrade
from smartrouter.feedback.tables import TRANSITIONS
from smartrouter.monitor.alerts import TargetRefused

spec = importlib.util.spec_from_file_location("alert_stubs", Path(__file__).parents[1] / "monitor" / "stubs.py")
stubs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(stubs)
SECRET = "s3cr3tpath"


@pytest.fixture
def stub(settings):
    upgrade(settings.store)
    made = stubs.Stub()
    yield made
    made.close()


def until(true, patience_s=30.0):
    limit = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < limit, "it did not come"
        time.sleep(0.05)


def joined(part):
    """Whether the worker's targets have joined: what happens before is history to them."""
    with part.store.engine.connect() as connection:
        return connection.exec_driver_sql("SELECT COUNT(*) FROM alerts WHERE incident = ''").scalar() == 1


def test_one_worker_tells_and_all_say_what_is_pending(make_app, stub, logfile, payment, capfd):
    stub.up = False
    apps = [make_app(alerts=f"json://127.0.0.1:{stub.port}/{SECRET}") for _ in range(2)]
    part = apps[0].extensions["smartrouter"]
    until(lambda: joined(part))
    stubs.change(part.store, "down", failures=3, attempts=3)
    until(lambda: stub.refused)
    assert apps[0].test_client().post("/api/v1/ml/predict", json=payment).status_code == 200
    for app in apps:
        (told,) = app.test_client().get("/ready").get_json()["alerts"]
        assert (told["target"], told["pending"]) == ("1-json", 1) and told["failed_in_a_row"] >= 1
    stub.up = True
    until(lambda: stub.took and not apps[1].test_client().get("/ready").get_json()["alerts"][0]["pending"])
    assert [said["title"] for said in stub.took] == ["WORLDPAY is down (volaris)"]
    assert " CST: up to down" in stub.took[0]["message"]  # in the merchant's zone
    counted = "".join(app.test_client().get("/metrics").get_data(as_text=True) for app in apps)
    assert 'smartrouter_alerts_total{result="sent",target="1-json"} 1.0' in counted
    shown = counted + logfile.read_text() + "".join(capfd.readouterr())
    shown += apps[0].test_client().get("/ready").get_data(as_text=True)
    assert "alert_failed" in shown and "alert_sent" in shown and SECRET not in shown


def test_a_store_without_its_table_stops_neither_payments_nor_the_thread(make_app, stub, payment, logfile):
    app = make_app(alerts=f"json://127.0.0.1:{stub.port}/{SECRET}")
    part = app.extensions["smartrouter"]
    until(lambda: joined(part))
    TRANSITIONS.drop(part.store.engine)
    until(lambda: "alerts_wait" in logfile.read_text())
    assert app.test_client().post("/api/v1/ml/predict", json=payment).status_code == 200
    assert app.test_client().get("/ready").get_json()["alerts"][0]["pending"] is None
    TRANSITIONS.create(part.store.engine)
    stubs.change(part.store, "down")
    until(lambda: stub.took)


def test_a_wrong_url_is_refused_before_the_service_starts(settings):
    for wrong in (f"pigeon://{SECRET}", f"slack://{SECRET}", "no-such-file.yaml"):
        with pytest.raises(TargetRefused) as caught:
            check(settings.model_copy(update={"alerts": wrong}))
        assert SECRET not in str(caught.value)


def test_a_file_that_went_after_the_start_stops_no_payment(make_app, promote, payment, logfile):
    promote("1")
    client = make_app(alerts="gone.yaml").test_client()
    assert client.post("/api/v1/ml/predict", json=payment).status_code == 200
    answer = client.get("/ready")
    assert answer.status_code == 200 and any("SMARTROUTER_ALERTS" in text for text in answer.get_json()["problems"])
    assert "alerts_refused" in logfile.read_text()
