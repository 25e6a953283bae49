"""report.html of a run: imported where one is written."""
