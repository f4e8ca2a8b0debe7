"""What should a person see and sign? Streamlit pages over the records."""

import monitor as monitor  # telemetry is off before Streamlit can be imported
