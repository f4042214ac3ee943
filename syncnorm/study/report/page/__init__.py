"""The HTML of a report: frame, style and script of its pages."""
