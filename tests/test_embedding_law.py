"""The law of embeddings given labels: exact where it can be, and nobody's embedding."""

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from continual.embedding_law import FEWEST, fit_law


def test_means_are_those_of_the_classes_and_the_covariance_is_ledoit_and_wolfs() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat([0.0, 1.0, 2.0], [30, 20, 10])[:, None]
    embeddings = generator.normal(size=(60, 4)) + labels
    law = fit_law(embeddings, labels)
    means = np.stack([embeddings[labels[:, 0] == value].mean(axis=0) for value in (0, 1, 2)])
    residuals = embeddings - means[labels[:, 0].astype(int)]
    assert law.shares == pytest.approx([30 / 60, 20 / 60, 10 / 60])
    assert law.means == pytest.approx(means)
    expected = LedoitWolf(assume_centered=True).fit(residuals).covariance_
    assert law.factor @ law.factor.T == pytest.approx(expected, abs=1e-5)


def test_findings_add_up_and_what_is_unknown_stays_unknown() -> None:
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 2, (400, 2)).astype(float)
    slopes = np.array([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    embeddings = labels @ slopes + 0.01 * generator.normal(size=(400, 3))
    labels[:50, 1] = np.nan
    law = fit_law(embeddings, labels)
    known = ~np.isnan(law.labels).any(axis=1)
    differences = law.means[known] @ np.eye(3) - law.labels[known] @ slopes
    assert differences - differences.mean(axis=0) == pytest.approx(0, abs=0.15)
    assert np.isnan(law.labels).any()


def test_what_is_drawn_is_spread_as_what_was_seen() -> None:
    generator = np.random.default_rng(2)
    labels = (generator.random(500) < 0.3).astype(float)[:, None]
    mixing = generator.normal(size=(6, 6))
    embeddings = generator.normal(size=(500, 6)) @ mixing + 2 * labels
    tokens, drawn = fit_law(embeddings, labels).draw(4000, np.random.default_rng(3))
    assert tokens.shape == (4000, 1, 6)
    assert drawn.mean() == pytest.approx(labels.mean(), abs=0.03)
    for value in (0.0, 1.0):
        ours, theirs = tokens[drawn[:, 0] == value, 0], embeddings[labels[:, 0] == value]
        assert ours.mean(axis=0) == pytest.approx(theirs.mean(axis=0), abs=0.4)
    assert np.cov(tokens[:, 0].T) == pytest.approx(np.cov(embeddings.T), abs=1.5)


def test_the_mean_of_a_few_studies_is_given_to_nobody() -> None:
    """A label that one patient alone has would make the law's mean that patient's embedding."""
    generator = np.random.default_rng(4)
    embeddings = generator.normal(size=(50, 8))
    labels = np.zeros((50, 1))
    labels[: FEWEST - 1] = 1.0
    embeddings[: FEWEST - 1] += 100
    few = fit_law(embeddings, labels)
    assert few.means[1] == pytest.approx(embeddings.mean(axis=0))
    labels[FEWEST - 1] = 1.0
    embeddings[FEWEST - 1] += 100
    enough = fit_law(embeddings, labels)
    assert enough.means[1] == pytest.approx(embeddings[:FEWEST].mean(axis=0))


def test_few_studies_in_many_dimensions_and_constant_ones_still_make_a_law() -> None:
    generator = np.random.default_rng(5)
    for embeddings in (generator.normal(size=(6, 40)), np.ones((6, 40))):
        tokens, _ = fit_law(embeddings, np.array([[0.0], [1.0]] * 3)).draw(10, generator)
        assert np.isfinite(tokens).all()
