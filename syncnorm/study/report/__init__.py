"""From rows to tables, figures and a page."""
