"""Says how to talk to a service that is starting: once `/ready` answers, a `curl` that works and the OpenAPI address.

It runs as a process of its own beside the service (`python -m serve.hello`), so that the service carries nothing of it.
"""

import contextlib
import json
import os
import time
import urllib.error
import urllib.request
from collections import Counter

from smartrouter.core.settings import Settings
from smartrouter.rules.policy import MerchantPolicy, load_policy

PATIENCE_S = 60.0  # for the first answer; a worker needs about two seconds to load its model
SETTLING_S = 5.0  # after `/ready` first answered that something is missing


def address(settings: Settings) -> str:
    """Where a browser on this machine finds the service."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    return f"http://{host}:{settings.port}"


def example_request(policy: MerchantPolicy) -> dict:
    """A payment that several processors of the merchant may take, without any personal data."""
    takers = Counter(b for p in policy.processors if policy.currency in p.currencies for b in p.brands)
    brand = max(takers, key=lambda name: (takers[name], name))
    return {
        "transaction_id": "tx-1",
        "merchant_id": policy.merchant_id,
        "order": {"amount": 2450.0, "currency": policy.currency},
        "card": {"bin": "415231", "brand": brand},
    }


def curl(settings: Settings, request: dict) -> str:
    """The command line that sends `request`; the key, where one is needed, comes from the caller's environment."""
    lines = [f"curl -s {address(settings)}/api/v1/ml/predict", "-H 'Content-Type: application/json'"]
    if settings.api_keys:
        lines.append('-H "X-API-Key: ${SMARTROUTER_API_KEYS%%,*}"')
    return " \\\n  ".join([*lines, f"-d '{json.dumps(request)}'"])


def readiness(url: str) -> tuple[bool, str]:
    """Wait until `/ready` answers 200, or has said for a while what is missing; that is the text."""
    said, until = "no answer", time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=2) as answer:
                return True, answer.read().decode()
        except urllib.error.HTTPError as error:  # it is up: what is missing now will hardly come by waiting
            said, until = error.read().decode(errors="replace"), min(until, time.monotonic() + SETTLING_S)
            time.sleep(0.5)
        except OSError as error:
            said = str(error)
        time.sleep(0.2)
    return False, said


def main() -> None:
    """Wait, then print; say nothing when the service that started it is gone."""
    settings = Settings.load()
    parent = os.getppid()
    url = address(settings)
    ready, said = readiness(url)
    if os.getppid() != parent:
        return
    state = (
        "Ready."
        if ready
        else f"Listening, but {url}/ready says: {said.strip()}\n\nValid requests are answered all the same."
    )
    request = example_request(load_policy(settings.merchant, settings.params, settings.home))
    print(f"\n{state} Rank the processors of a payment:\n\n{curl(settings, request)}\n")
    print(f"The API's pages: {url}/openapi    Stop with Ctrl-C.\n", flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is meant for the service
        main()
