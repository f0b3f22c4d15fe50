"""Finished runs as tables, verdicts, pictures and a page: ``python -m utils.report``.

Each file imports only those above it:

    identity.py     what a configuration is called: hash, dataset, method, label
    run_files.py    one finished run, from its directory; what its epochs say under every rule
    compact_log.py  many finished runs in three small files, read and written
    hardness.py     how runs do on the hardest test samples
    condition.py    conditions on the columns of a table
    collect.py      all finished runs in and under folders, and which of them are wanted
    statistics.py   verdicts, intervals, ranks and reversals
    published.py    the published numbers, and which of them a configuration can be held against
    comparison.py   every rule for the epoch beside the published number
    render.py       a table of texts as text, markdown, LaTeX or CSV
    tables.py       tables of texts, and the notes below them
    summarise.py    a table of any CSV file
    charts.py       charts of many runs
    sample_figures.py
                    pictures of the samples of runs
    figures.py      which pictures there are, and their files
    page.py         all of it as one HTML page, laid out by page.html
    update.py       tables between the markers of markdown files
    __main__.py     the command line
"""
