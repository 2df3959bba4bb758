"""`serve`: image files in, records out, for several callers, over the Open Inference Protocol.

The processes that assess are children, so that an image that ends a decoder ends no server. The
server itself holds no image longer than its request, decodes nothing and writes nothing.
"""

LIBRARIES = ("starlette", "uvicorn", "httptools", "uvloop", "prometheus_client")
"""Of the extra `serve`; `commands` asks for them before anything here is imported."""
