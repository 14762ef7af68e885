"""A pytest plugin that makes the tests' process native before any test is imported."""

from nodeproc import native

native.activate()
assert native.compiled(), native.choose().reason
