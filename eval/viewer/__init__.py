"""The browser of responses: `transfer view` serves it on this machine only, or writes a slice of it as one page.

`stored.py` reads what one model answered, `cell.py` puts all models side by side and filters, `study.py` makes of it
what the page shows, `explain.py` says why a rule judged as it did, `server.py` answers requests, `page.py` fills the
template. Nothing here writes to a study. What models wrote is untrusted text: it reaches the page as JSON and is shown
as text alone.
"""
