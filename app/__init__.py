"""The explorer: Streamlit pages over the library, on this machine only."""
