"""The site for an ASGI server; its static files too, so that the demo needs no other server."""

import os

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example.settings")
application = ASGIStaticFilesHandler(get_asgi_application())
