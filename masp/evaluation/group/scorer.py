"""Scores of several soft prompts or questions for the same images, behind one pass of the prefix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from masp.errors import InputError
from masp.evaluation.scorers import Score, ScoreRequest, TargetScorer, chosen, finite_for
from masp.models.candidates import scored_tree
from masp.models.group_likelihood import Branch, branch_of, score_members
from masp.models.likelihood import check_finite


class GroupScorer:
    """The members of a group around one language half.

    Args:
        scorers: The members: same language half, aspect modules and categories, layout `after_image`.
    """

    def __init__(self, scorers: Sequence[TargetScorer]):
        self.scorers, self.first = list(scorers), scorers[0]
        assert all(scorer.categories == self.first.categories for scorer in scorers), "these decide the group"
        self.scored = scored_tree(tuple(self.first.candidates), self.first.prompt.end)
        self._branches: dict[int, Branch] = {}

    def score(self, requests: Sequence[ScoreRequest], members: Sequence[int]) -> dict[int, list[Score] | InputError]:
        """Score a batch of images, each asked about once, for some members.

        Returns:
            Of each member one score per request, or why it has none: its output is not finite.
        """
        found: dict[int, list[Score] | InputError] = {}
        names = [request.name for request in requests]
        for number, (sums, means) in zip(members, self._sums(requests, members), strict=True):
            try:
                with finite_for(names, self.first.dtype):
                    check_finite(sums)
                found[number] = chosen(self.first.categories, sums, means)
            except InputError as error:
                found[number] = error
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
