"""YAML that means what a person sees in it."""

import pytest
import yaml

from smartrouter.core.documents import PlainLoader


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "key a comes twice"),
        ("a: {b: {c: 1, c: 2}}", "key c comes twice"),
        ("a: &x [1]\nb: *x", "alias"),
        ("a: &x {b: *x}", "alias"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ],
)
def test_what_misleads_is_refused_with_its_place(text, said):
    with pytest.raises(yaml.YAMLError, match=said) as caught:
        yaml.load(text, PlainLoader)
    assert "line " in str(caught.value)


@pytest.mark.parametrize("word", ["NO", "no", "yes", "Y", "n", "on", "OFF"])
def test_words_stay_words(word):
    assert yaml.load(f"a: {word}", PlainLoader) == {"a": word}


def test_the_rest_of_yaml_is_as_ever():
    assert yaml.load("{t: true, f: FALSE, n: null, i: 7, x: 0.5}", PlainLoader) == {"t": True, "f": False, "n": None, "i": 7, "x": 0.5}  # fmt: skip  # noqa: E501
    assert yaml.load("", PlainLoader) is None and yaml.safe_load("a: NO") == {"a": False}
