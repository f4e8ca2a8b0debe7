"""A report in one plain sentence: what changed, how bad it is, where it sits, or why nothing can be said."""

from __future__ import annotations

from monitor.harm import headline_harm
from monitor.results import Verdict, WindowReport

CONSTANT = "every study of the window has the same embedding: is preprocessing upstream broken?"


def tell_report(report: WindowReport) -> str:
    """Sum a window up from its figures; figures that were suppressed are not spoken of."""
    if not report.n:
        return "No study arrived in this window."
    if report.verdict is Verdict.NOT_ENOUGH_DATA:
        why = f": {report.results[0].reason}" if report.results else ""
        return f"{report.n} studies of {report.patients} patients are too few to judge{why}."
    if report.verdict is Verdict.NO_DRIFT:
        return _quiet_sentence(report)
    drifted = [result for result in report.results if result.verdict is Verdict.DRIFT]
    kinds = list(dict.fromkeys(result.kind.value for result in drifted))
    features = list(dict.fromkeys(result.feature for result in drifted))
    alike = f" {CONSTANT.capitalize()}" if any(CONSTANT in result.reason for result in drifted) else ""
    gone = [told for result in drifted for told in result.reason.split("; ") if " is missing in " in told]
    missing = f" {'; '.join(gone)}." if gone else ""
    changed = f"Changed: {', '.join(kinds)} ({', '.join(features)}).{alike}{missing}"
    return f"{changed}{_harm_sentence(report)}{_carrier_sentence(report)}"


def _quiet_sentence(report: WindowReport) -> str:
    """Say that nothing changed, and what that does not cover: changes too small to count, comparisons not made."""
    results = report.results
    small = dict.fromkeys(r.feature for r in results if r.p_value is not None and r.p_value <= r.threshold)
    unknown = dict.fromkeys(f"{r.feature} ({r.reason})" for r in results if r.verdict is Verdict.NOT_ENOUGH_DATA)
    beyond = f"by enough to count; surely but slightly changed: {', '.join(small)}" if small else "beyond chance"
    not_judged = f" Not judged: {', '.join(unknown)}." if unknown else ""
    studies = f"{report.n} studies of {report.patients} patients"
    return f"Nothing in {studies} differs from the reference {beyond}.{not_judged}"


def _harm_sentence(report: WindowReport) -> str:
    harm = headline_harm(report.harms)
    if harm is None or harm.current is None or harm.reference is None:
        return " Without labels the loss is only estimated."
    sure = "surely worse" if harm.sure else "not surely worse"
    metric = "AUROC" if harm.metric == "auroc" else harm.metric.capitalize()
    return f" {metric} {harm.current:.3f} against {harm.reference:.3f} in the reference, {sure}."


def _carrier_sentence(report: WindowReport) -> str:
    """Say where the drift sits, if that is beyond chance: in a value that came or went, or within one."""
    top = next(iter(report.contributions), None)
    if top is None or not top.beyond_chance or top.share_reference is None or top.share_current is None:
        return ""
    value = f"{top.attribute} = {top.value}"
    if top.p_within is not None and (top.p_share is None or top.p_within < top.p_share):
        return f" Images of {value} look other than they did."
    return f" Most of it sits in {value}: {top.share_reference:.0%} of the reference, {top.share_current:.0%} now."
