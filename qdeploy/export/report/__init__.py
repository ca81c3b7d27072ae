"""The report of an export: its record and its page."""
