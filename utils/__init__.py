"""What main.py stands on. Nothing here knows a dataset, a model or a loss by name."""
