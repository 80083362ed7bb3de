"""Numbers of vision tokens."""

from masp.plan.vision_tokens import PlannedImage, TokenStatistics, token_statistics


def test_quantiles():
    images = [PlannedImage(None, (1, 1), (1, 2, 2 * n), n, 300) for n in range(1, 101)]
    assert token_statistics(images) == TokenStatistics(min=1, median=50, mean=50.5, p95=95, max=100, total=5050)
