"""From run folders to tables, figures and a report. Imported only when a report is made."""
