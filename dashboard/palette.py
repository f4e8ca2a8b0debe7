"""Colours, marks and words with one meaning each, on every page, in light and in dark.

The colours are Okabe and Ito's (2008), told apart with every kind of colour vision; none speaks
alone, a mark or a word always says the same. Each has a contrast of at least 3 : 1 with both backgrounds.
"""

from __future__ import annotations

from monitor.results import DriftKind, Source, Verdict

LIGHT, DARK = "#FFFFFF", "#12171D"
"""The two backgrounds."""

LOOK = "#D55E00"
"""Vermilion: a person must look (drift, refused)."""

QUIET = "#009E73"
"""Bluish green: nothing stands in the way (no drift, passed)."""

UNKNOWN = "#8592A3"
"""Grey: could not be judged."""

BEFORE = "#4A97C9"
"""Light blue: the reference, or the champion."""

NOW = "#0072B2"
"""Dark blue: this window, or the challenger."""

PALE = "#E3EFF7"
"""The palest of the blues: a low figure in a table that is coloured."""

ESTIMATE = "#B5659A"
"""Purple: estimated without labels, never measured."""

LINE = "rgba(128, 138, 150, 0.28)"
"""Grid lines and zero lines."""

LABEL = "#717D8B"
"""Slate: the words on axes."""

VERDICT_COLOURS = {Verdict.DRIFT: LOOK, Verdict.NO_DRIFT: QUIET, Verdict.NOT_ENOUGH_DATA: UNKNOWN}
VERDICT_WORDS = {
    Verdict.DRIFT: "drift",
    Verdict.NO_DRIFT: "no drift",
    Verdict.NOT_ENOUGH_DATA: "not enough data",
}
VERDICT_MARKS = {Verdict.DRIFT: "diamond", Verdict.NO_DRIFT: "circle", Verdict.NOT_ENOUGH_DATA: "circle-open"}
OUTCOME_COLOURS = {True: QUIET, False: LOOK}
OUTCOME_WORDS = {True: "passed", False: "refused"}
OUTCOME_MARKS = {True: "circle", False: "x"}

SOURCE_WORDS: dict[str, str] = {Source.REALISED: "measured with labels", Source.ESTIMATED: "estimated without labels"}
KIND_WORDS = {
    DriftKind.APPEARANCE: "How images look",
    DriftKind.ACQUISITION: "How images are taken",
    DriftKind.CASE_MIX: "Who is examined",
    DriftKind.BEHAVIOUR: "How the model answers",
    DriftKind.CONCEPT: "What a finding means",
}

THEME = {
    "theme.baseRadius": "0.5rem",
    "theme.showWidgetBorder": "true",
    "theme.light.primaryColor": "#0072B2",
    "theme.light.backgroundColor": LIGHT,
    "theme.light.secondaryBackgroundColor": "#F4F6F8",
    "theme.light.textColor": "#1F2933",
    "theme.light.borderColor": "#DDE2E8",
    "theme.light.redColor": LOOK,
    "theme.light.redBackgroundColor": "#FCEFE6",
    "theme.light.redTextColor": "#9A4400",
    "theme.light.greenColor": QUIET,
    "theme.light.greenBackgroundColor": "#E6F4EF",
    "theme.light.greenTextColor": "#00664B",
    "theme.light.blueColor": UNKNOWN,
    "theme.light.blueBackgroundColor": "#EEF1F4",
    "theme.light.blueTextColor": "#46525F",
    "theme.dark.primaryColor": "#56B4E9",
    "theme.dark.backgroundColor": DARK,
    "theme.dark.secondaryBackgroundColor": "#1B222B",
    "theme.dark.textColor": "#E4E9EE",
    "theme.dark.borderColor": "#313B47",
    "theme.dark.redColor": LOOK,
    "theme.dark.redBackgroundColor": "#3A2213",
    "theme.dark.redTextColor": "#FFB27A",
    "theme.dark.greenColor": QUIET,
    "theme.dark.greenBackgroundColor": "#0F2F27",
    "theme.dark.greenTextColor": "#6FD6B6",
    "theme.dark.blueColor": UNKNOWN,
    "theme.dark.blueBackgroundColor": "#252D37",
    "theme.dark.blueTextColor": "#B8C3CF",
}
"""Streamlit's own boxes in the same colours: an error box is LOOK, a success box QUIET, an info box UNKNOWN."""
