"""The budget of false alarms, lived through with the product's own comparisons, for every default set of detectors."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from scipy.stats import poisson

from monitor.alarms import AlarmState, advance, count_alarms, joins_comparison, list_settled, weigh_window
from monitor.cohorts import Cohort, Window, concatenate
from monitor.comparisons import MOST_PERMUTED, Background, calibrate
from monitor.embedding_shift import fit_reference
from monitor.policies import DriftPolicy
from monitor.tasks import Task
from monitor.watching import _detect

START = datetime(2026, 1, 5, tzinfo=UTC)
POLICY = DriftPolicy(false_alarms_per_year=365, permutations=99)
"""As many false alarms as are ever borne, so that a few hundred windows have some to count."""


@dataclass(frozen=True)
class Ward:
    images: bool
    reference: int
    patients: int
    days: int
    windows: int


WARDS = {
    "table, daily": Ward(images=False, reference=120, patients=30, days=1, windows=60),
    "images, daily": Ward(images=True, reference=120, patients=30, days=1, windows=80),
    "large reference, daily": Ward(images=True, reference=MOST_PERMUTED + 1, patients=60, days=1, windows=60),
    "images, weekly": Ward(images=True, reference=120, patients=30, days=7, windows=80),
}


def draw(rng, ward: Ward, patients: int, first: int, window: Window) -> Cohort:
    labels = (rng.random(patients) < 0.4).astype(float)
    scores = 1 / (1 + np.exp(-rng.normal(2 * labels - 1, 1)))
    return Cohort(
        task=Task.BINARY,
        classes=("no", "yes"),
        study_uid=np.array([f"s{first + i}" for i in range(patients)]),
        patient_key=np.array([f"p{first + i}" for i in range(patients)]),
        times=np.full(patients, np.datetime64(window.start.replace(tzinfo=None), "us")),
        scores=scores[:, None],
        labels=labels[:, None],
        attributes={"sex": rng.choice(["F", "M"], patients), "age": rng.normal(60, 12, patients).round()},
        embeddings=rng.normal(size=(patients, 6)).astype(np.float32) if ward.images else None,
        image_statistics={"noise": rng.gamma(3, 1, patients)} if ward.images else {},
    )


def count_false_alarms(ward: Ward, rng: np.random.Generator) -> tuple[int, set[str]]:
    """Live quiet windows under the product's rules; counts alarms, and names what was compared."""
    length = timedelta(days=ward.days)
    reference = draw(rng, ward, ward.reference, 0, Window(start=START - length, end=START))
    least = calibrate(reference, ward.patients, POLICY, rng)
    states, windows, joined, opened, compared = [AlarmState()], [], [], [], set()
    fitted, settled, cohort = None, None, reference
    for number in range(ward.windows):
        window = Window(start=START + number * length, end=START + (number + 1) * length)
        current = draw(rng, ward, ward.patients, 1_000_000 + number * ward.patients, window)
        if settled != (settled := list_settled(joined, opened, POLICY.join_after)):
            cohort = concatenate([reference, *(windows[place] for place in settled)])
            if ward.images and cohort.patients > MOST_PERMUTED:
                fitted = fit_reference(cohort.embeddings, cohort.patient_key, generator=np.random.default_rng(0))
        background = Background(cohort=cohort, least_effects=least, embedding=fitted)
        results = _detect(background, current, window, POLICY, rng, lambda what: None)
        evidence = weigh_window(window, results)
        states.append(advance(states[-1], evidence, POLICY))
        compared |= set(evidence.p_values)
        sizes = {"patients": current.patients, "compared": cohort.patients}
        windows.append(current)
        joined.append(joins_comparison(states[-1], evidence, **sizes, policy=POLICY))
        opened.append(states[-1].open_since == window)
    return count_alarms(states), compared


@pytest.mark.parametrize(
    "name", ["table, daily", *(pytest.param(name, marks=pytest.mark.slow) for name in WARDS if "table" not in name)]
)
def test_a_quiet_ward_keeps_to_its_budget_of_false_alarms(name):
    """Expected alarms are at most the windows times `drift_alpha`; the count may exceed it by chance only so far."""
    ward = WARDS[name]
    alarms, compared = count_false_alarms(ward, np.random.default_rng([9, len(name)]))
    expected = ward.windows * POLICY.drift_alpha(Window(start=START, end=START + timedelta(days=ward.days)))
    assert alarms <= poisson.ppf(0.975, expected)
    wanted = {"ks on score yes", "ks on uncertainty", "ks on age", "chi_square on sex", "chi_square on prevalence yes"}
    assert compared == wanted | ({"embedding_shift on embedding", "ks on image noise"} if ward.images else set())
