"""The dashboard: started by ``wardround dashboard``; reads the store that WARDROUND_DIR names."""

import streamlit as st

from dashboard import adaptation_page, approvals_page, audit_page, drift_page, fairness_page, overview_page
from dashboard.palette import NOW
from dashboard.reading import model_names, plain, store
from dashboard.signing_in import Visitor, show_sign_in, sign_out, visitor

ICON = f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">
<rect width="32" height="32" rx="7" fill="{NOW}"/>
<path d="M4 17h7l3-8 5 15 3-7h6" fill="none" stroke="white" stroke-width="3" stroke-linejoin="round"/></svg>"""
"""Drawn here: Streamlit fetches the icon that it shows for a symbol's name from a server of Google's."""


def main() -> None:
    """Show the side bar and the chosen page to a person who is signed in, and nothing to anybody else."""
    st.set_page_config(page_title="Wardround", page_icon=ICON, layout="wide")
    person = visitor()
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
    page = st.navigation(pages, position="sidebar" if person else "hidden")
    if person is None:
        show_sign_in()
        return
    _show_side_bar(person)
    page.run()


def _show_side_bar(person: Visitor) -> None:
    _, records = store()
    names = model_names(records)
    with st.sidebar:
        if len(names) > 1:
            st.selectbox("Model", names, key="model")
        elif names:
            st.caption("Model")
            st.markdown(plain(names[0]))
        st.caption(plain(f"Signed in: {person.name}, {person.role}"))
        st.button("Sign out", on_click=sign_out, width="stretch", icon=":material/logout:")


main()
