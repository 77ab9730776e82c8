"""From a saved model and its report to a repository: card, receipt, upload, metric Space, demo Space.

Knows folders, reports and the Hub, and no model. Nothing here runs code from a repository.
"""
