"""What the settings show of themselves."""

from smartrouter.core.settings import Settings


def test_settings_that_are_shown_hold_no_secret():
    urls = {"store": "postgresql+psycopg://u:s3cret@h/d", "mlflow": "https://u:s3cret@h", "alerts": "json://h/s3cret"}
    settings = Settings(api_keys="s3cret", **urls)
    assert "s3cret" not in repr(settings) and "s3cret" not in str(settings)
