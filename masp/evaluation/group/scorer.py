"""Scores of several soft prompts or questions for the same images, behind one pass of the prefix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from masp.errors import InputError
from masp.evaluation.feed import Item
from masp.evaluation.scorers import ScoreRequest, TargetScorer, chosen, finite_for
from masp.evaluation.target import TargetEvaluation
from masp.models.candidates import scored_tree
from masp.models.group_likelihood import Branch, branch_of, score_members
from masp.models.likelihood import check_finite
from masp.results.ledger_format import Record
from masp.vlm.language import LanguageHalf

Found = tuple[list[Record], list[np.ndarray]]
"""Records of images, and their attention maps or nothing; as `masp.evaluation.protocol.Evaluation.score` returns."""


class GroupScorer:
    """The members of a group around one language half.

    Args:
        evaluations: The members: same aspect modules, layout `after_image`, same categories.
        device: `cpu` or `cuda`.
        language: The VLM's language half, there.
    """

    def __init__(self, evaluations: Sequence[TargetEvaluation], device: str, language: LanguageHalf):
        self.evaluations = list(evaluations)
        self.scorers: list[TargetScorer] = []
        for evaluation in evaluations:
            prompt = self.scorers[0].prompt if self.scorers else None
            evaluation.load(device, language, prompt)
            assert evaluation.scorer is not None
            self.scorers.append(evaluation.scorer)
        self.first = self.scorers[0]
        self.scored = scored_tree(tuple(self.first.candidates), self.first.prompt.end)
        self._branches: dict[int, Branch] = {}

    def score(self, items: Sequence[Item], members: Sequence[int]) -> dict[int, Found | InputError]:
        """Score a batch of images for some members.

        Returns:
            Of each member its records, or why it has none: its output is not finite.
        """
        requests = self.evaluations[0].requests(items)
        shown = {number for number in members if self.evaluations[number].aspects_shown}
        maps = self.first.attention(requests) if shown else []  # of the aspect modules, so the same for all
        found: dict[int, Found | InputError] = {}
        names = [request.name for request in requests]
        for number, (sums, means) in zip(members, self._sums(requests, members), strict=True):
            try:
                with finite_for(names, self.first.dtype):
                    check_finite(sums)
            except InputError as error:
                found[number] = error
                continue
            scores = chosen(self.first.categories, sums, means)
            found[number] = self.evaluations[number].records(items, scores), maps if number in shown else []
        return found

    @torch.inference_mode()
    def _sums(self, requests: Sequence[ScoreRequest], members: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        batch = self.scorers[members[0]].batch(requests, frozen_prefix=True)
        branches = [self._branch(number, requests[0]) for number in members]
        tokens, modules = batch.aspect_tokens, self.first.model.aspect_modules
        if tokens is None and modules is not None:
            tokens = modules(batch.features, batch.feature_mask)
        return score_members(self.first.model.language, batch, tokens, branches, self.scored)

    def _branch(self, number: int, request: ScoreRequest) -> Branch:
        """What a member puts behind the prefix of any image, made once."""
        if number not in self._branches:
            scorer = self.scorers[number]
            sequence, soft_prompt = scorer.sequence(request, len(scorer.aspects)), scorer.model.soft_prompt
            weight = None if soft_prompt is None else soft_prompt()
            self._branches[number] = branch_of(scorer.model.language, sequence, weight, self.scored, scorer.device)
        return self._branches[number]
