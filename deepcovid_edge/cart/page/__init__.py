"""`page`: what the cart has assessed, for the eyes of people; one small web service.

Starlette, uvicorn, Jinja2 and prometheus-client are imported in this room alone.
"""

LIBRARIES = ("starlette", "uvicorn", "jinja2", "prometheus_client", "python_multipart")
"""Of the extra `cart`; `commands` asks for them before anything here is imported."""
