"""The dashboard: started by ``wardround dashboard``; reads the store that WARDROUND_DIR names."""

import streamlit as st

from dashboard import adaptation_page, approvals_page, audit_page, drift_page, fairness_page, overview_page
from dashboard.reading import chosen_model, plain, store


def main() -> None:
    """Show the side bar and the chosen page."""
    st.set_page_config(page_title="Wardround", page_icon=":material/stethoscope:", layout="wide")
    pages = [
        st.Page(
            overview_page.show, title="Overview", icon=":material/monitor_heart:", url_path="overview", default=True
        ),
        st.Page(drift_page.show, title="Drift", icon=":material/trending_up:", url_path="drift"),
        st.Page(fairness_page.show, title="Fairness", icon=":material/groups:", url_path="fairness"),
        st.Page(adaptation_page.show, title="Adaptation", icon=":material/healing:", url_path="adaptation"),
        st.Page(approvals_page.show, title="Approvals", icon=":material/draw:", url_path="approvals"),
        st.Page(audit_page.show, title="Audit", icon=":material/link:", url_path="audit"),
    ]
    page = st.navigation(pages)
    _, records = store()
    names = sorted(records.models())
    with st.sidebar:
        st.markdown("### Wardround")
        if len(names) > 1:
            st.selectbox("Model", names, key="model")
        elif names:
            st.caption(f"Model: {plain(chosen_model())}")
    page.run()


main()
