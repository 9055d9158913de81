"""The outage parameter file."""

from pathlib import Path

import pytest

from smartrouter.outage.config import OutageConfigRefused, config_path, load_config, parse_config
from smartrouter.outage.detector import TechnicalConfig
from smartrouter.outage.silence import SilenceConfig

SHIPPED = Path(__file__).parents[2] / "params/outage/default.yaml"


def test_the_shipped_file_says_what_the_defaults_are():
    config = load_config(SHIPPED)
    assert config.technical == TechnicalConfig() and config.silence == SilenceConfig()


@pytest.mark.parametrize(
    "given, expected, path",
    [
        ("margin: 1.5", "margin: 15", "technical.margin"),
        ("margin: 1.5", "mragin: 1.5", "technical.mragin"),
        ("ratio: 1.15", "ratio: .inf", "silence.ratio"),
        ("silence:", "silense:", "silense"),
        ('"51", ', '"51", "05", ', "signal.codes"),
        ("unknown: issuer", "unknown: nobody", "signal.unknown"),
    ],
)
def test_a_fault_is_named_with_its_path(given, expected, path):
    text = SHIPPED.read_text()
    assert given in text
    with pytest.raises(OutageConfigRefused, match=path):
        parse_config(text.replace(given, expected))


@pytest.mark.parametrize("text", ["", "[]", "signal: {", "a: 1\na: 2"])
def test_what_is_no_such_file_is_refused(text):
    with pytest.raises(OutageConfigRefused):
        parse_config(text, "mine.yaml")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(OutageConfigRefused, match="Give its path"):
        load_config(tmp_path / "none.yaml")


def test_a_merchants_own_file_wins_and_the_home_folder_wins(tmp_path):
    params, home = tmp_path / "params", tmp_path / "home"
    for folder in (params, home):
        (folder / "outage").mkdir(parents=True)
    assert config_path("m1", params, home) == params / "outage" / "default.yaml"  # where one is expected
    for place in (params / "default", home / "default", params / "m1", home / "m1"):
        path = place.parent / "outage" / f"{place.name}.yaml"
        path.write_text(SHIPPED.read_text())
        assert config_path("m1", params, home) == path
    assert config_path("m2", params, home) == home / "outage" / "default.yaml"
