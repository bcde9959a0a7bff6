"""Answers as HTTP: JSON in ASCII, an error as `{"error": line}`."""

from __future__ import annotations

import json

from starlette.responses import Response


def json_answer(status: int, content: object) -> Response:
    """In ASCII, so that any text of a world can be sent."""
    return Response(json.dumps(content, allow_nan=False), status, media_type="application/json")


def error_answer(status: int, message: str) -> Response:
    return json_answer(status, {"error": " ".join(message.split())})
