"""The service with its processors' health in Redis: several hosts, one health; Redis away, and back."""

import pytest

from serve import run
from smartrouter.feedback.shared import HealthUrlRefused
from tests.serve.test_processors import FEEDBACK, PROCESSORS, WHO, kill, pay, report, state_of, until


@pytest.fixture
def open_host(open_app, redis_server):
    """Start the service as on one of several hosts."""
    return lambda: open_app(health=redis_server.url).test_client()


def test_an_outage_is_seen_by_every_host_and_told_once(open_host):
    first, second = open_host(), open_host()
    dead, lost = kill(first)
    assert lost <= 6
    until(lambda: second.get("/ready").json["health"]["states"][dead] == "down")
    assert pay(second, 100)["ranking"][0]["processor"] != dead
    ready = open_host().get("/ready").json["health"]  # started in the middle of the outage
    assert ready["states"][dead] == "down" and ready["kind"] == "redis" and ready["view_age_s"] < 60
    until(lambda: second.get(PROCESSORS).json["transitions"])
    (told,) = first.get(PROCESSORS).json["transitions"]
    assert (told["key"], told["after"]) == (dead, "down")


def test_redis_away_costs_no_feedback_and_moves_no_state(open_host, redis_server):
    client = open_host()
    dead, _ = kill(client)
    redis_server.stop()
    answered = pay(client, 50)
    assert answered["ranking"][0]["processor"] != dead
    assert report(client, answered, status="approved") == "counted"
    before = state_ages(client)
    until(lambda: state_ages(client) > before + 0.2)
    assert client.get("/ready").json["health"]["states"][dead] == "down"
    assert client.get(PROCESSORS).status_code == 503  # what holds is not known; what held is in /ready
    redis_server.start()
    code = answered["ranking"][0]["processor"]
    until(lambda: client.get(PROCESSORS).status_code == 200)
    until(lambda: state_of(client, code)["scores"]["5"]["attempts"] == 1)
    assert state_of(client, dead)["state"] == "down"


def state_ages(client):
    return client.get("/ready").json["health"]["view_age_s"]


def test_an_override_reaches_every_host(open_host):
    first, second = open_host(), open_host()
    answer = first.post(f"{PROCESSORS}/WORLDPAY/override", json={"state": "down", "minutes": 5, **WHO})
    assert answer.status_code == 200 and answer.json["override"]["who"] == WHO["who"]
    until(lambda: second.get("/ready").json["health"]["states"]["WORLDPAY"] == "down")
    assert second.delete(f"{PROCESSORS}/WORLDPAY/override", json=WHO).json["override"] is None
    until(lambda: len(first.get(PROCESSORS).json["transitions"]) == 2)


def test_the_same_outcome_at_two_hosts_counts_once(open_host):
    first, second = open_host(), open_host()
    answered = pay(first, 1)
    code = answered["ranking"][0]["processor"]
    sent = {"prediction_id": answered["prediction_id"], "event_id": "e1", "processor": code, "status": "approved"}
    receipts = [client.post(FEEDBACK, json=sent).json["status"] for client in (first, second, first)]
    assert receipts == ["counted", "duplicate", "duplicate"]
    assert state_of(second, code)["scores"]["5"]["attempts"] == 1


@pytest.mark.parametrize("url", ["memcached://:hunter2@cache", "redis://:hunter2@cache:port/0"])
def test_a_wrong_health_url_is_refused_at_the_start(settings, url):
    with pytest.raises(HealthUrlRefused) as caught:
        run.check(settings.model_copy(update={"health": url, "port": 65_000}))
    assert "hunter2" not in str(caught.value) and "redis://host:6379/0" in str(caught.value)
    assert "hunter2" not in repr(settings.model_copy(update={"health": url}))
