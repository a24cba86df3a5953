"""The page of `compare`: one file to look through runs, or a server that shows them as they train.

Plotly draws and DataTables sorts. Both are maintained and common, and their packages hold the
JavaScript as one file that needs no network. A page's own JavaScript is in ``assets/``; it has no
build step.
"""
