"""Finished runs as tables, verdicts, pictures and a page: ``python -m utils.report``.

collect.py reads runs and compact logs, published.py the published numbers; statistics.py has the
verdicts; tables.py, figures.py and page.py show them; __main__.py is the command line.
"""
