"""What gunicorn serves."""

from service.app import create_app
from service.master import settings

app = create_app(settings())
