"""The HTTP interface for programs: `/predict`, `/health`, `/metrics`."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from masp import __version__
from masp.data.images import UnreadableImage
from masp.errors import MaspError
from masp.inference.model import Model
from masp.inference.serving.batching import Answer
from masp.inference.serving.body import FORMS, read_images
from masp.inference.serving.metrics import CONTENT_TYPE
from masp.inference.serving.service import GONE, Service

PATHS = ("/", "/predict", "/health", "/metrics")
_WORDS = {"true": True, "1": True, "yes": True, "": True, "false": False, "0": False, "no": False}


def make_app(service: Service) -> FastAPI:
    """The routes that every server has, but for `/`."""
    # its pages of documentation come from other hosts, and what they describe reads its requests itself
    app = FastAPI(title="MASP", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(ClientDisconnect, _gone)

    @app.get("/health")
    async def health() -> JSONResponse:
        is_ready = service.batcher.is_ready
        return JSONResponse({"alive": True, "ready": is_ready}, 200 if is_ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @app.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        explains = _is_asked(request, "explain")
        if explains and not service.models[0].aspects:
            raise HTTPException(400, "explain: this model has no aspect modules to explain with")
        async with service.admitted() as admission:
            images, is_form = await read_images(request, service.settings.max_body_bytes, service.settings.queue)
            admission.take(len(images) - 1)
            work = service.answer_each(images, [0] * len(images), explains)
            found = await admission.while_connected(request, work)
        if is_form and len(images) > 1:
            shown = zip(images, found, strict=True)
            return JSONResponse({"predictions": [_as_json(image.name, one) for image, one in shown]})
        return JSONResponse(_as_json(images[0].name, found[0]), status_of(found[0]))

    return app


def add_index(app: FastAPI, service: Service) -> None:
    """Add `/`, which says what there is."""

    @app.get("/")
    async def index() -> dict[str, Any]:
        return {
            "masp": __version__,
            **about(service.sources[0], service.models[0]),
            "POST /predict": f"{FORMS}; ?explain=true",
            "GET /health": "200 once the VLM is loaded, 503 before",
            "GET /metrics": "for Prometheus",
        }


def about(source: str, model: Model) -> dict[str, Any]:
    """What a model predicts, and from what; `source` is what the user named."""
    config = model.config
    return {
        "run": source,
        "vlm": str(config.vlm.path),
        "target": config.target.name,
        "categories": list(model.categories),
        "aspects": list(model.aspects),
    }


def status_of(found: Answer | MaspError) -> int:
    """The HTTP status of what was found about an image."""
    if isinstance(found, Answer):
        return 200
    return 422 if isinstance(found, UnreadableImage) else 500


def why_not(error: MaspError) -> str:
    """Why there is no answer about an image, in words for whoever sent it."""
    return f"cannot read this image: {error.reason}" if isinstance(error, UnreadableImage) else str(error)


def _as_json(name: str, found: Answer | MaspError) -> dict[str, Any]:
    if isinstance(found, MaspError):
        return {"image": name, "error": why_not(found)}
    prediction, shown = found.prediction, {}
    if found.explanation is not None:
        said = found.explanation.to_json()
        rest = {key: said[key] for key in ("aspects", "all_aspects", "vision_features", "interaction")}
        shown = {"explanation": {"sentence": said["explanation"], **rest}}
    return {
        "image": name,
        "label": prediction.label,
        "probabilities": prediction.probabilities,
        "log_likelihoods": prediction.log_likelihoods,
        **shown,
    }


def _is_asked(request: Request, name: str) -> bool:
    unknown = set(request.query_params) - {name}
    if unknown:
        raise HTTPException(400, f"unknown parameter {sorted(unknown)[0][:40]!r}; there is {name}")
    given = request.query_params.get(name, "false").lower()
    if given not in _WORDS:
        raise HTTPException(400, f"{name} must be true or false")
    return _WORDS[given]


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=GONE)
