"""What the settings show of themselves."""

from smartrouter.core.settings import Settings


def test_settings_that_are_shown_hold_no_secret():
    settings = Settings(api_keys="s3cret", store="postgresql+psycopg://u:s3cret@h/d", mlflow="https://u:s3cret@h")
    assert "s3cret" not in repr(settings) and "s3cret" not in str(settings)
