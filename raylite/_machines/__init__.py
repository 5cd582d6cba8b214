"""Decisions: synchronous classes that take what happened and return what to do."""
