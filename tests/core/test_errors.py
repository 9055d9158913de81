"""Every error of the family survives the way to another process and back."""

import importlib
import pickle
import pkgutil

import pytest

import serve
import smartrouter
from smartrouter.cli import DiskFull
from smartrouter.core.cards import CardNumberRefused
from smartrouter.core.errors import SmartrouterError
from smartrouter.feedback.tables import StoreUnavailable


def kinds():
    """Every class of the family in the package and the service."""
    for package in (smartrouter, serve):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "migrations" not in module.name:
                importlib.import_module(module.name)
    found, left = [], [SmartrouterError]
    while left:
        found.append(left.pop())
        left += found[-1].__subclasses__()
    return [kind for kind in dict.fromkeys(found) if kind.__module__.partition(".")[0] in ("smartrouter", "serve")]


def same(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and again.args == error.args and vars(again) == vars(error)
    assert (str(again), again.exit_code) == (str(error), error.exit_code)
    return again


def test_every_error_comes_back_as_it_went():
    known = kinds()
    assert len(known) > 60 and StoreUnavailable in known
    for kind in known:
        error = kind.__new__(kind)  # whatever its own arguments are
        SmartrouterError.__init__(error, "a broken thing", "a whole one", "Mend it")
        error.cause = "busy"
        assert same(error).remedy == "Mend it"


@pytest.mark.parametrize(
    "error",
    [
        SmartrouterError("a", "b", "Do c"),
        StoreUnavailable("busy", "database is locked"),
        DiskFull(OSError(28, "no space left", "store.db")),
        CardNumberRefused("$.order.note", "411111…1111"),
    ],
)
def test_errors_with_arguments_of_their_own_come_back(error):
    same(error)
