"""Drift: what changed, when, how much, where it sits, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from dashboard import calibration_charts, calibration_view, charts, window_charts
from dashboard.drawing import QUIET_BAR
from dashboard.glossary import show_terms
from dashboard.grading import show_severity, show_streams
from dashboard.names import detector_words, feature_words, reword, sentence, value_words
from dashboard.overview_page import show_banner
from dashboard.palette import KIND_WORDS, VERDICT_WORDS
from dashboard.reading import chosen_model, pick_finding, pick_window, plain, reports_of, show_table, store
from dashboard.wording import tell_change, tell_window
from monitor.reconciliation import reconcile
from monitor.results import Source, Verdict, WindowReport

TERMS: tuple[str, ...] = ("Reference", "Window", "Drift", "Not enough data", "Beyond chance", "95 % interval")
TERMS += ("Headline", "Stream score", "Severity", "Estimated without labels", "Image embedding")
TERMS += ("MMD, LSDD, classifier, KS, chi-square", "Calibration")
METRICS = ("auroc", "sensitivity", "specificity", "accuracy", *calibration_view.FIGURES)
DOUBTFUL = 0.01


def show() -> None:
    """Show the page."""
    st.title("Drift", anchor=False)
    settings, _ = store()
    reports = reports_of(chosen_model())
    if reports:
        st.subheader("Which kind of change, window by window", anchor=False)
        st.plotly_chart(window_charts.kinds_by_week(reports), width="stretch", key="kinds", config=QUIET_BAR)
    report = pick_window()
    if report is None:
        return
    show_banner(report.verdict, tell_window(report), tell_change(report))
    show_severity(report)
    show_streams(report)
    _show_effects(report, settings.drift.minimum_effect)
    _show_places(report)
    _show_examples(report)
    _show_prevalences(report)
    _show_losses(report)
    calibration_view.show_calibration(report, pick_finding(report))
    _show_errors(reports)
    with st.expander("The figures as a table"):
        show_table(_table(report))
    _offer_evidently(report)
    show_terms(*TERMS, metrics=METRICS)


def _show_effects(report: WindowReport, least: float) -> None:
    st.subheader("What changed, and how much", anchor=False)
    if any(result.effect is not None for result in report.results):
        figure = charts.drift_effects(report.results, least=least)
        st.plotly_chart(figure, width="stretch", key="effects", config=QUIET_BAR)
        st.caption(
            "Each bar compares this window with the reference. It is called drift when chance is ruled out over "
            "all bars together and the bar reaches beyond its mark, the least that counts. p is how often chance alone "
            "would do as much. Patients are counted, not images."
        )
    if unknown := [result for result in report.results if result.verdict is Verdict.NOT_ENOUGH_DATA]:
        with st.expander(f"{len(unknown)} of {len(report.results)} comparisons could not be made", expanded=True):
            for result in unknown:
                what = f"{KIND_WORDS[result.kind]}, {feature_words(result.feature)}"
                st.markdown(f"- {plain(what)}: {plain(result.reason)}")


def _show_places(report: WindowReport) -> None:
    st.subheader("Where it sits", anchor=False)
    if not report.contributions:
        st.info("The export carries no attributes, so a change cannot be attributed to any of them.")
        return
    st.plotly_chart(charts.attribution(report.contributions), width="stretch", key="attribution", config=QUIET_BAR)
    st.caption(
        "How much of the studies each value makes up; first what is beyond chance over all values, then the most "
        "changed. A value with few patients is not shown, so that nobody can be named by it."
    )
    moved = [c for c in report.contributions if c.beyond_chance and c.p_within is not None and c.p_within < 0.05]
    if moved:
        names = ", ".join(value_words(c.attribute, c.value) for c in moved[:5])
        st.markdown(plain(f"Images look other than they did within: {names}."))


def _show_examples(report: WindowReport) -> None:
    if not report.examples:
        return
    st.subheader("The studies that show it best", anchor=False)
    show_table(
        [
            {
                "study": example.study_uid,
                "distance from the reference": example.score,
                "nearest reference studies": ", ".join(example.neighbours),
            }
            for example in report.examples
        ]
    )
    st.caption(
        "One study a patient, the plainest first. The distance is in standard deviations of the reference's studies."
    )


def _show_losses(report: WindowReport) -> None:
    st.subheader("What it costs", anchor=False)
    if any(harm.loss is not None for harm in report.harms):
        st.plotly_chart(charts.losses(report.harms), width="stretch", key="losses", config=QUIET_BAR)
        st.caption(
            "Loss is the reference minus this window, with a 95 % interval over patients. Estimates use no labels of "
            "this window: they see harder cases, but not a changed meaning of the images; their lines are about all "
            "such studies, not about what the labels of these few will show."
        )
    if doubts := list(dict.fromkeys(words for harm in report.harms for words in harm.assumptions)):
        st.warning("**Do not trust the estimates blindly.**  \n" + "  \n".join(plain(sentence(d)) for d in doubts))
    reasons = {harm.reason for harm in report.harms if harm.loss is None and harm.reason}
    if reasons:
        st.caption(plain(f"Not told where: {'; '.join(sorted(reasons))}."))


def _show_prevalences(report: WindowReport) -> None:
    told = [shift for shift in report.prevalences if shift.estimate is not None]
    if not told:
        return
    st.subheader("How frequent findings are now", anchor=False)
    st.plotly_chart(charts.prevalences(told), width="stretch", key="prevalences", config=QUIET_BAR)
    if doubtful := [shift.finding for shift in told if shift.fits is not None and shift.fits <= DOUBTFUL]:
        st.warning(plain(f"Doubtful for {', '.join(doubtful)}: no mixture of the classes gives these scores."))
    st.caption(
        "Estimated without labels, from how the model answers each class in the reference, with 95 % intervals. It "
        "assumes that every class looks as it did."
    )


def _show_errors(reports: Sequence[WindowReport]) -> None:
    errors = reconcile(reports)
    if not errors:
        return
    st.subheader("What earlier estimates were worth", anchor=False)
    past = {
        (harm.window, harm.metric, harm.finding): harm.past_error
        for report in reports
        for harm in report.harms
        if harm.source is Source.ESTIMATED
    }
    st.plotly_chart(calibration_charts.estimate_errors(errors, past), width="stretch", key="errors", config=QUIET_BAR)
    st.caption(
        "Estimated minus measured, once labels had come; 0 is a perfect estimate. Lines are what chance alone allows "
        "in 95 % of windows. What lies beyond is the estimate's own error: the band shows how much of it was known "
        "before each window, and widened its estimates; it needs three windows with labels to begin."
    )


def _table(report: WindowReport) -> list[dict[str, object]]:
    return [
        {
            "kind": KIND_WORDS[result.kind],
            "compared": feature_words(result.feature),
            "detector": detector_words(result.detector),
            "verdict": VERDICT_WORDS[result.verdict],
            "effect": result.effect,
            "effect is": result.effect_name,
            "p": result.p_value,
            "p needed": result.threshold,
            "patients now": result.patients_current,
            "patients in reference": result.patients_reference,
            "in words": reword(result.reason),
        }
        for result in report.results
    ]


def _offer_evidently(report: WindowReport) -> None:
    settings, _ = store()
    name = report.window.key.replace("/", "_").replace(":", "")
    folder = (settings.directory / "reports").resolve()
    path = (folder / report.model / f"{name}.html").resolve()
    if not (path.is_relative_to(folder) and path.is_file()):
        st.caption("There is no Evidently report of this window.")
        return
    st.download_button(
        "Evidently's report of this window (HTML)",
        path.read_bytes,
        f"evidently_{name}.html",
        "text/html",
        on_click="ignore",
        icon=":material/download:",
    )
