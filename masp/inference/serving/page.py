"""The page of `masp app`: one image, what the models make of it and where they look; the mistakes of an evaluation."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from masp import __version__
from masp.data.images import decode_image, read_image_file
from masp.errors import MaspError
from masp.files.regular import read_bytes
from masp.inference.images import NamedImage
from masp.inference.model import Model
from masp.inference.serving.batching import Answer
from masp.inference.serving.body import read_images
from masp.inference.serving.mistakes import RunMistakes
from masp.inference.serving.service import Service
from masp.inference.serving.web import about, status_of, why_not
from masp.report.attention import aspect_images
from masp.report.html import SIDE, data_address, small

ASSETS = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/app.css": ("app.css", "text/css"),
}
_PAGE = 12
"""Mistakes that are sent at once."""


class AppPage:
    """The routes of the page.

    Args:
        service: Answers about images.
    """

    def __init__(self, service: Service):
        self.service = service
        self.names = names_of(service.sources)
        self.mistakes = [RunMistakes(source) for source in service.sources]

    def add(self, app: FastAPI) -> list[str]:
        """Add the routes; returns their paths."""
        for path, (name, kind) in ASSETS.items():
            app.add_api_route(path, self._asset(name, kind), methods=["GET"])
        app.add_api_route("/api/about", self.about, methods=["GET"])
        app.add_api_route("/api/look", self.look, methods=["POST"])
        app.add_api_route("/api/mistakes/{model}", self.list_mistakes, methods=["GET"])
        app.add_api_route("/api/mistakes/{model}/{number}", self.look_at_mistake, methods=["POST"])
        return [*ASSETS, "/api/about", "/api/look"]

    @staticmethod
    def _asset(name: str, kind: str) -> Any:
        content = read_bytes(Path(__file__).parent / "assets" / name)
        assert content is not None, "it comes with MASP"

        async def asset() -> Response:
            return Response(content, media_type=kind)

        return asset

    async def about(self) -> dict[str, Any]:
        """What the page shows before there is an image."""
        return {
            "version": __version__,
            "ready": self.service.batcher.is_ready,
            "max_bytes": self.service.settings.max_body_bytes,
            "models": [
                {**about(source, model), "name": name, "notes": model.notes}
                for source, model, name in zip(self.service.sources, self.service.models, self.names, strict=True)
            ],
        }

    async def look(self, request: Request) -> JSONResponse:
        """What all models make of an image that was sent."""
        async with self.service.admitted() as admission:
            images, _ = await read_images(request, self.service.settings.max_body_bytes, 1)
            admission.take(len(self.service.models) - 1)
            return await admission.while_connected(request, self._looked(images[0]))

    async def look_at_mistake(self, request: Request, model: int, number: int) -> JSONResponse:
        """What all models make of an image of the evaluation."""
        async with self.service.admitted() as admission:
            admission.take(len(self.service.models) - 1)
            name, label, image = await self._read(self._of(model).place, number)
            if image is None:
                raise HTTPException(404, f"{name}: the image is not there")
            return await admission.while_connected(request, self._looked(NamedImage(name, image), label))

    async def list_mistakes(self, model: int, start: int = 0) -> dict[str, Any]:
        """Some mistakes of the evaluation of a run, from number `start` on."""
        return await self._read(self._of(model).listed, max(0, start), _PAGE)

    def _of(self, model: int) -> RunMistakes:
        if not 0 <= model < len(self.mistakes):
            raise HTTPException(404, f"there is no model {model}")
        return self.mistakes[model]

    async def _read(self, work: Any, *arguments: int) -> Any:
        try:
            # records, and the list of a dataset, are read once, so by one thread
            return await asyncio.get_running_loop().run_in_executor(self.service.reader, work, *arguments)
        except MaspError as error:
            raise HTTPException(404, str(error)) from None

    async def _looked(self, image: NamedImage, label: str | None = None) -> JSONResponse:
        models = self.service.models
        found = await asyncio.gather(
            *(self.service.answer_each([image], [n], bool(m.aspects)) for n, m in enumerate(models))
        )
        answers = [one for (one,) in found]
        if all(isinstance(one, MaspError) for one in answers):
            first = answers[0]
            assert isinstance(first, MaspError)
            return JSONResponse({"error": why_not(first)}, status_of(first))
        loop, decoders = asyncio.get_running_loop(), self.service.decoders
        shown, parts = await loop.run_in_executor(decoders, _drawn, image, models, answers)
        named = zip(self.names, parts, strict=True)
        return JSONResponse(
            {"name": image.name, "label": label, "image": shown, "models": [{"name": n, **p} for n, p in named]}
        )


def names_of(sources: Sequence[str]) -> list[str]:
    """What to call models: the last parts of what the user named, or all of it where these are the same."""
    names = [Path(source).resolve().name for source in sources]
    return names if len(set(names)) == len(names) else list(sources)


def _drawn(image: NamedImage, models: Sequence[Model], answers: Sequence[Answer | MaspError]) -> tuple[str, list[Any]]:
    """The image, small, and what each model made of it, with the attention laid over it."""
    data = read_image_file(image.image)
    parts = []
    for model, answer in zip(models, answers, strict=True):
        if isinstance(answer, MaspError):
            parts.append({"error": why_not(answer)})
            continue
        vlm, explanation = model.config.vlm, answer.explanation
        maps = {}
        if explanation is not None:
            maps = {one.aspect: one.attention for one in explanation.aspects if one.attention is not None}
        seen = decode_image(data, vlm.max_side, transparency=vlm.transparency)
        overlays = dict(zip(maps, (one.image for one in aspect_images(seen, maps)), strict=True))
        parts.append(_shown(model, answer, overlays))
    return data_address(small(decode_image(data, 2 * SIDE), 2 * SIDE)), parts


def _shown(model: Model, answer: Answer, overlays: dict[str, str]) -> dict[str, Any]:
    prediction, explanation = answer.prediction, answer.explanation
    ranked = sorted(prediction.probabilities.items(), key=lambda pair: -pair[1])
    found: dict[str, Any] = {
        "label": prediction.label,
        "probabilities": [{"category": category, "probability": share} for category, share in ranked],
    }
    if explanation is None:
        return found | {"aspects": []}
    aspects = [
        {
            "aspect": one.aspect.replace("_", " "),
            "answer": one.answer,
            "probability": one.probability,
            "contribution": one.contribution,
            "overlay": overlays.get(one.aspect),
        }
        for one in explanation.aspects
    ]
    return found | {
        "sentence": explanation.sentence,
        "aspects": aspects,
        "all_aspects": explanation.all_aspects,
        "vision_features": explanation.vision_features,
        "interaction": explanation.interaction,
        "why_no_attention": model.explainer.why_no_attention,
    }
