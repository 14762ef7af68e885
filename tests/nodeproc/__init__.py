"""Tests of node and client."""
