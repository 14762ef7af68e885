"""The pages in a real browser: Chromium, driven by selenium. Skipped with the reason where one of them is missing."""
