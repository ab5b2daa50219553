"""The pages of the explorer; Streamlit runs them by their path."""
