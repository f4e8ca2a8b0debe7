"""What the words on a page mean, for a reader who is no engineer; folded away at its end."""

from __future__ import annotations

import streamlit as st

from dashboard.names import METRIC_MEANINGS

TERMS = {
    "Reference": "the weeks that the model was found to be good in; every window is compared with them.",
    "Window": "the stretch of days that one verdict speaks about, usually a week.",
    "Drift": "a window differs from the reference by more than chance and by enough to count. It asks for a look; "
    "it does not say that the model is wrong.",
    "Alarm": "the evidence of several windows together has become so strong that it would be a false alarm about as "
    "often a year as the policy allows. It stays open until quiet windows follow.",
    "Severity": "quiet, watch, act or stop: what the alarm, the loss and the subgroups together ask for.",
    "Stream score": "100: nothing differs from the reference beyond chance. 50: the worst part changed by twice the "
    "least that counts. A stream is as good as its worst part.",
    "Headline": "the score of the worst stream. It is no average: nine quiet parts cannot hide a tenth that changed.",
    "Not enough data": "too few patients to tell. That is not an all-clear.",
    "Beyond chance": "so large a difference would be rare if nothing had changed; p says how rare.",
    "95 % interval": "the figures that agree with what was seen; the fewer patients, the longer.",
    "Labelled": "the truth about a study is known, usually weeks later; days are counted from the model's answer.",
    "Estimated without labels": "computed from the model's own scores, for studies whose truth is not known yet.",
    "Image embedding": "the numbers in which the network sums up an image; they change when images look different.",
    "MMD, LSDD, classifier, KS, chi-square": "statistical tests; each compares one thing with the reference.",
    "Subgroup": "the patients who share a value, such as one sex, an age band or a scanner.",
    "Gap": "a subgroup's figure minus that of everyone else.",
    "Adapter": "a small set of weights beside the large network, which itself is never changed.",
    "Strategy": "the way an adapter learns. Naive: from the new studies alone. Replay: older studies are rehearsed. "
    "EWC: weights that the old needs are held on to.",
    "Forgetting": "how much worse the adapter is on what was known before.",
    "Backward transfer": "how learning the new changed the figure on the old; below 0 it fell.",
    "Learning, potential, retention": "three figures by the FDA's regulatory science group (Burgon et al. 2026). "
    "Learning: what the change gained on the new studies. Potential: what the new studies had cost the model before. "
    "Retention: how good the changed model is on everything known before.",
    "Flip": "an answer that changes with the model: a negative flip was right and is wrong now, a positive flip was "
    "wrong and is right now.",
    "Champion and challenger": "the version that is live, and the one that would take its place.",
    "Held-out cohort": "patients set aside for judging; no adapter ever learned from them.",
    "The gate": "the fixed tests that a challenger must pass before a person may sign.",
    "Calibration": "whether a score of 0.8 comes true eight times in ten; measured by the Brier score.",
    "Digest": "a fingerprint of a content: change one letter and it is another.",
    "Quarantine": "rows of an export that could not be taken, kept with the reason.",
    "Event": "one line of the record. Each carries the digest of the line before, so none can change unseen.",
}


def show_terms(*terms: str, metrics: tuple[str, ...] = ()) -> None:
    """Show what these terms and metrics mean."""
    with st.expander("What the words mean"):
        lines = [f"- **{term}**: {TERMS[term]}" for term in terms]
        lines += [
            f"- **{name}**:{meaning}" for name, _, meaning in (METRIC_MEANINGS[m].partition(":") for m in metrics)
        ]
        st.markdown("\n".join(lines))
