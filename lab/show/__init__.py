"""Presentation of runs: tables, junit.xml, diagrams and summary pages."""
