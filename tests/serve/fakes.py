"""What a real server loads in tests: the application with the stand-ins of conftest."""

import importlib.util
import os
from pathlib import Path

from serve.app import create_app
from smartrouter.core.settings import Settings

spec = importlib.util.spec_from_file_location("serve_conftest", Path(__file__).with_name("conftest.py"))
stand_ins = importlib.util.module_from_spec(spec)
spec.loader.exec_module(stand_ins)


def worker_app():
    return create_app(Settings.load(os.environ), decide=stand_ins.fake_decide, load_model=stand_ins.fake_load)
