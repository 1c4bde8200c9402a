"""Runs on a page: figures, tables and example groups of one run, or of several side by side.

`run_data` reads runs, `examples` picks some of their groups. `charts` says what is drawn, as `bars` or `curves`, by
`drawing` in the colours of `palette`; `tables` what stands in columns. `page` makes one HTML file of all that, and
`write` puts it where it belongs.
"""

from adagrpo_ray.reports.run_data import Run, read
from adagrpo_ray.reports.write import PAGE, PLOTS, write_report

__all__ = ["PAGE", "PLOTS", "Run", "read", "write_report"]
