"""Streams without drift: the statistics of alibi-detect's online tests, against SciPy's and against plain sums."""

import numpy as np
import pytest
from scipy.stats import cramervonmises_2samp, fisher_exact

from monitor.null_streams import measure_cvm, simulate_cvm, simulate_fet, simulate_mmd, tabulate_fet

N, WINDOWS, LENGTH = 50, (5, 12), 23


def test_the_statistic_of_columns_is_cramer_and_von_mises_s_in_its_standard_units():
    rng = np.random.default_rng(0)
    reference, stream = rng.normal(size=N), rng.normal(0.3, 1, (2, LENGTH))
    below = (reference <= stream[..., None]).sum(axis=-1).astype(float)
    found = measure_cvm(stream, below, N, WINDOWS)
    for place, window in enumerate(WINDOWS):
        both = N + window
        mean = 1 / 6 + 1 / (6 * both)
        variance = (both + 1) * (4 * N * window * both - 3 * (N**2 + window**2) - 2 * N * window)
        variance /= 45 * both**2 * 4 * N * window
        assert np.isnan(found[:, : window - 1, place]).all()
        for row in range(2):
            for time in range(window - 1, LENGTH):
                known = cramervonmises_2samp(reference, stream[row, time - window + 1 : time + 1]).statistic
                assert found[row, time, place] == pytest.approx((known - mean) / np.sqrt(variance), abs=1e-9)


def test_simulated_statistics_of_columns_have_the_mean_and_the_spread_that_theory_gives():
    found = simulate_cvm(N, WINDOWS, LENGTH, 4000, np.random.default_rng(1))
    last = found[:, -1]
    np.testing.assert_allclose(last.mean(axis=0), 0, atol=4 / np.sqrt(4000))
    np.testing.assert_allclose(last.std(axis=0), 1, atol=0.1)


@pytest.mark.parametrize(("rise", "alternative"), [(True, "greater"), (False, "less")])
def test_the_statistic_of_yes_and_no_is_one_less_fishers_p_value(rise, alternative):
    for seen, found in enumerate(tabulate_fet(15, N, 12, rise=rise)):
        p = fisher_exact([[seen, 12 - seen], [15, N - 15]], alternative=alternative).pvalue
        assert found == pytest.approx(1 - p, abs=1e-9)


@pytest.mark.parametrize("rise", [True, False])
def test_simulated_shares_are_as_likely_as_the_reference_leaves_them(rise):
    found = simulate_fet(15, N, WINDOWS, LENGTH, 4000, rise=rise, smoothing=1.0, generator=np.random.default_rng(2))
    assert np.isnan(found[:, :11, 1]).all()
    for place in range(2):
        for alpha in (0.01, 0.1):
            assert (found[:, -1, place] >= 1 - alpha).mean() <= alpha + 4 * np.sqrt(alpha / 4000)


def test_smoothing_is_an_exponential_moving_average():
    plain, smooth = (
        simulate_fet(15, N, (5,), LENGTH, 3, rise=True, smoothing=by, generator=np.random.default_rng(3))[:, 4:, 0]
        for by in (1.0, 0.25)
    )
    expected = plain[:, 0]
    for time in range(1, plain.shape[1]):
        expected = 0.75 * expected + 0.25 * plain[:, time]
    np.testing.assert_allclose(smooth[:, -1], expected, rtol=1e-5)


def test_the_statistic_of_embeddings_is_the_unbiased_mmd_of_the_window_and_the_rest():
    rng, window = np.random.default_rng(4), 4
    values = rng.normal(size=(30, 3))
    kernel = np.exp(-((values[:, None] - values) ** 2).sum(axis=-1) / 2)
    found = simulate_mmd(kernel, window, 5, np.random.default_rng(5))
    order = np.random.default_rng(5).random((5, 30)).argsort(axis=1)
    for stream in range(5):
        rest = order[stream, 2 * window - 1 :]
        for step in range(window):
            now = order[stream, step : step + window]
            pairs = [kernel[np.ix_(side, side)].sum() - np.trace(kernel[np.ix_(side, side)]) for side in (rest, now)]
            expected = pairs[0] / (len(rest) * (len(rest) - 1)) + pairs[1] / (window * (window - 1))
            expected -= 2 * kernel[np.ix_(rest, now)].mean()
            assert found[stream, step] == pytest.approx(expected, abs=1e-12)
