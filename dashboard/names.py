"""How things are named on screen: windows by their days; figures, features and strategies in words."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from continual.policies import Treatment
from monitor.cohorts import Window

METRIC_WORDS = {
    "auroc": "AUROC",
    "brier": "Brier score",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "accuracy": "accuracy",
    "average_precision": "average precision",
    "ece": "calibration error with chance in it",
    "ece_debiased": "calibration error",
    "brier_reliability": "miscalibration",
    "brier_resolution": "discrimination",
    "brier_uncertainty": "difficulty",
    "calibration_slope": "calibration slope",
    "calibration_intercept": "calibration intercept",
    "selection_rate": "share called positive",
    "calibration_offset": "mean score less truth",
    "equalised_odds": "equalised odds",
    "balanced_accuracy": "mean of sensitivity and specificity",
}
METRIC_MEANINGS = {
    "auroc": "AUROC: how well the scores rank sick above healthy; 0.5 is chance, 1 is perfect.",
    "brier": "Brier score: how far the scores lie from the truth; 0 is perfect, lower is better.",
    "sensitivity": "Sensitivity: of the studies with the finding, the share that the model catches.",
    "specificity": "Specificity: of the studies without it, the share that the model leaves alone.",
    "accuracy": "Accuracy: the share of studies that the model calls right.",
    "average_precision": "Average precision: of the studies ranked highest, the share that has the finding; 1 is "
    "perfect.",
    "ece": "Calibration error with chance in it: as the calibration error, with what chance alone adds.",
    "ece_debiased": "Calibration error: how far the scores lie from how often they come true, over ten groups of equal "
    "size, less what chance alone would add. 0 is perfect.",
    "brier_reliability": "Miscalibration: the part of the Brier score that comes from scores that promise too much or "
    "too little.",
    "brier_resolution": "Discrimination: the part that the Brier score is lower by, for the scores tell studies apart.",
    "brier_uncertainty": "Difficulty: the Brier score of a model that always says how frequent the finding is.",
    "calibration_slope": "Calibration slope: 1 is right. Below 1 the scores are too extreme: high ones promise too "
    "much, low ones too little. Above 1 they are too timid.",
    "calibration_intercept": "Calibration intercept: 0 is right. Above 0 the finding is more frequent than the scores "
    "say, below 0 rarer.",
    "selection_rate": "Share called positive: the share of studies that the model calls positive, right or wrong.",
    "calibration_offset": "Mean score less truth: above 0 the scores promise more findings than there are.",
    "balanced_accuracy": "Mean of sensitivity and specificity: the sick caught and the healthy left alone, counted "
    "alike however many there are.",
    "equalised_odds": "Equalised odds: the larger of the gaps in sensitivity and in specificity, whatever their sign.",
}
DETECTOR_WORDS = {
    "mmd": "MMD",
    "ks": "KS",
    "chi_square": "chi-square",
    "alibi_mmd": "MMD, alibi",
    "alibi_lsdd": "LSDD",
    "alibi_classifier": "classifier",
    "alibi_learned_kernel": "learned kernel",
    "alibi_spot_the_diff": "spot the difference",
    "alibi_context_mmd": "MMD at equal case mix",
    "embedding_shift": "feature shift",
    "domain_classifier": "linear classifier",
    "wasserstein": "Wasserstein",
    "psi": "PSI",
    "jensen_shannon": "Jensen–Shannon",
}
FEATURE_WORDS = {"embedding": "image embedding"}
FEATURE_PREFIXES = {"score ": "score for ", "prevalence ": "share labelled "}
STRATEGY_WORDS = {"ewc": "EWC"}
TREATMENT_SLUGS = {treatment.slug: treatment.value for treatment in Treatment}
STRATEGY_MEANINGS = {
    "naive": "learns from the new studies alone",
    "replay": "rehearses older studies while it learns the new ones",
    "ewc": "learns the new, but holds on to the weights that the old needs",
    "cumulative": "learns from everything again",
}

COMPARED = re.compile(r"(.+) \((\w+)\)")
SPAN = re.compile(r"(?<![\w-])(\d{4}-\d\d-\d\d)(?:/| to )(\d{4}-\d\d-\d\d)(?![\w-])")
IN_REASONS = {r"\bauroc\b": "AUROC", r"\bbrier\b": "Brier score", r"\bchi_square\b": "chi-square"}
IN_REASONS |= {r"\bcalibration_offset\b": "mean score less truth", r"\bequalised_odds\b": "equalised odds"}
IN_REASONS |= {r"\bselection_rate\b": "share called positive", r" = (?=[<>≤≥])": " "}
IN_REASONS |= {r"\bbalanced_accuracy\b": METRIC_WORDS["balanced_accuracy"]}


def metric_words(name: str) -> str:
    """Name a metric as a reader would."""
    return METRIC_WORDS.get(name, name)


def feature_words(name: str) -> str:
    """Name what was compared: the image embedding, the score for yes, the share labelled yes."""
    for prefix, words in FEATURE_PREFIXES.items():
        if name.startswith(prefix):
            return words + name.removeprefix(prefix)
    return FEATURE_WORDS.get(name, name)


def part_words(name: str) -> str:
    """Name a part of a stream: image sharpness (KS), accuracy of yes."""
    if found := COMPARED.fullmatch(name):
        return f"{feature_words(found[1])} ({detector_words(found[2])})"
    metric, of, finding = name.partition(" of ")
    return f"{metric_words(metric)}{of}{finding}"


def detector_words(name: str) -> str:
    """Name a detector as its authors write it."""
    return DETECTOR_WORDS.get(name, name)


def strategy_words(name: str) -> str:
    """Name a strategy as its authors write it; a treatment without one by its own words."""
    return STRATEGY_WORDS.get(name, TREATMENT_SLUGS.get(name, name))


def value_words(attribute: str, value: str) -> str:
    """Write an attribute and its value: source = large, age > 62."""
    return f"{attribute} {value}" if value[:1] in ("<", ">", "≤", "≥") else f"{attribute} = {value}"


def number(value: float | None) -> str:
    """Write a figure, or a dash where there is none."""
    return "–" if value is None else f"{value:.3f}"


def days(window: Window) -> str:
    """Write a window as its first and last day: 4 – 10 May 2026."""
    first, last = window.start, window.end - timedelta(microseconds=1)
    if first.date() == last.date():
        return f"{first.day} {first:%b %Y}"
    end = f"{last.day} {last:%b %Y}"
    if first.year != last.year:
        return f"{first.day} {first:%b %Y} – {end}"
    return f"{first.day} – {end}" if first.month == last.month else f"{first.day} {first:%b} – {end}"


def day(moment: datetime) -> str:
    """Write a moment as its day: 4 May 2026."""
    return f"{moment.day} {moment:%B %Y}"


def plural(n: int, word: str) -> str:
    """Write a count with its noun: 1 study, 2,398 studies."""
    many = f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"
    return f"{n:,} {word if n == 1 else many}"


def sentence(text: str) -> str:
    """Begin a text with a capital letter."""
    return text[:1].upper() + text[1:]


def reword(text: str) -> str:
    """Write a recorded reason as a reader would: windows by their days, figures by their names."""
    said = SPAN.sub(_days_of, text)
    for pattern, words in IN_REASONS.items():
        said = re.sub(pattern, words, said)
    return said


def distinct(names: list[str]) -> list[str]:
    """Number names that occur more than once: a list of choices must never show one name for two things."""
    seen: dict[str, int] = {}
    told = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        told.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return told if len(set(told)) == len(told) else [f"{i + 1}. {name}" for i, name in enumerate(names)]


def _days_of(found: re.Match[str]) -> str:
    try:
        return days(Window.from_key(f"{found[1]}/{found[2]}"))
    except ValueError:
        return found[0]
