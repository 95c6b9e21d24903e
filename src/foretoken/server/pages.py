"""The pages: one file each, whose own script and style alone may run."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from starlette.responses import HTMLResponse, Response


def page(name: str) -> Response:
    """The page of a file in this package.

    Its policy names the hashes of the script and the style in the file: nothing else runs, and nothing is loaded from
    another host or sent to one, whatever a model says.
    """
    text = (files("foretoken.server") / name).read_text(encoding="utf-8")
    policy = {
        "default-src": "'none'",
        "script-src": _hash("script", text),
        "style-src": _hash("style", text),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = {
        "Content-Security-Policy": "; ".join(f"{directive} {sources}" for directive, sources in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return HTMLResponse(text, headers=headers)


def _hash(element: str, text: str) -> str:
    (content,) = re.findall(f"<{element}>(.*?)</{element}>", text, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
