"""World files: unknown keys, names that do not match, and a second merchant without code."""

from pathlib import Path

import pytest
import yaml

from smartrouter.world.config import WorldFileError, check_pair, load_merchant, load_world
from smartrouter.world.simulate import WorldConfig, WorldConfigError, simulate

ROOT = Path(__file__).parents[2]
WORLD, MERCHANT = ROOT / "params/world/volaris.yaml", ROOT / "params/merchants/volaris.yaml"


def changed(tmp_path: Path, change) -> Path:
    """A copy of the world file after `change` has edited its content."""
    content = yaml.safe_load(WORLD.read_text(encoding="utf-8"))
    change(content)
    path = tmp_path / "world.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: w.update(colour="blue"), "colour"),
        (lambda w: w["physics"]["funds"].update(bas=1.0), "physics.funds.bas"),
        (lambda w: w["physics"]["route_sd"].pop("issuer"), "physics.route_sd.issuer"),
        (lambda w: w["physics"]["latent"].update(common=0.9), "must be 1"),
        (lambda w: w["fx_per_mxn"].pop("COP"), "currency COP"),
        (lambda w: w["processors"].pop("default"), "processors.default"),
        (lambda w: w["behaviour"]["cascade"].update(hunger=0.5), "hunger"),
        (lambda w: w["issuers"][0].update(brands={"DINERS": 1.0}), "DINERS"),
        (lambda w: w["policy"]["versions"][0]["rules"][0].update(when={"currency": {"like": "M%"}}), "like"),
        (lambda w: w["policy"].update(exploration=1.5), "exploration"),
        (lambda w: w["rhythm"].update(hour_weights=[1.0]), "hour_weights"),
    ],
)
def test_a_wrong_world_file_is_refused_by_name(tmp_path, change, named):
    with pytest.raises(WorldFileError, match=named):
        load_world(changed(tmp_path, change))


def test_a_missing_file_and_broken_yaml_say_which(tmp_path):
    with pytest.raises(WorldFileError, match="no world file"):
        load_world(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1", encoding="utf-8")
    with pytest.raises(WorldFileError, match=r"broken\.yaml"):
        load_world(broken)


def test_rules_that_name_a_processor_the_merchant_has_not(tmp_path):
    path = changed(tmp_path, lambda w: w["policy"]["versions"][1]["rules"][0].update(order=["NOBODY"]))
    with pytest.raises(WorldFileError, match="NOBODY"):
        check_pair(load_world(path), load_merchant(MERCHANT))


@pytest.mark.parametrize(("days", "attempts", "seed"), [(0, 1000, 7), (30, 1, 7), (30, 1000, -1), (9999, 1000, 7)])
def test_impossible_sizes_are_refused(days, attempts, seed):
    with pytest.raises(WorldConfigError):
        simulate(WorldConfig(days, attempts, seed, MERCHANT, WORLD))


def test_a_second_merchant_needs_no_code(tmp_path):
    merchant = {
        "merchant_id": "acme",
        "time_zone": "Europe/Berlin",
        "currency": "MXN",
        "processors": [
            {
                "code": "NORTH",
                "id": 1,
                "brands": ["VISA", "MASTERCARD", "AMEX", "CARNET"],
                "currencies": ["MXN", "USD"],
            },
            {"code": "SOUTH", "id": None, "brands": ["VISA", "MASTERCARD"], "currencies": ["MXN", "COP", "CRC", "GTQ"]},
        ],
        "default_order": ["NORTH", "SOUTH"],
    }
    path = tmp_path / "acme.yaml"
    path.write_text(yaml.safe_dump(merchant), encoding="utf-8")
    rules = [{"label": "all", "when": {}, "order": ["SOUTH", "NORTH"]}]
    world = changed(tmp_path, lambda w: w["policy"].update(versions=[{"name": "only", "until": 1.0, "rules": rules}]))
    result = simulate(WorldConfig(10, 2000, 7, path, world))
    assert set(result.attempts["processor"]) == {0, 1} and result.catalogue.utc_offset_hours == 1
