"""What gunicorn serves."""

from gunicorn.errors import AppImportError

from service.app import create_app
from service.master import settings
from service.settings import SettingsError

try:
    app = create_app(settings())
except SettingsError as error:
    # The kind that gunicorn reports without a stack, and ends the start over instead of trying again for ever.
    raise AppImportError(f"seawall does not start: {error}") from error
