"""The comparison of all families: what a run measured, as tables, charts and one page."""
