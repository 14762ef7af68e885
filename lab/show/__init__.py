"""Telling people: tables and files made from verdicts and metrics."""
