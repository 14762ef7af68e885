"""The pages in a real browser: Chromium, driven by selenium. Skipped with the reason where one of them is missing.

test_pages           a finished run and its replay; a session by mouse and by every key, judged and run again; the
                     audience's address; other sites, ports and names of this machine; servers that end and start again;
                     reports from the file system, also of a long run; axe-core in light and dark
test_debugger        any event equals a straight replay; steps, stops, branches that are saved, lost frames; predicting
                     and the reveal; the choice of each event in `explore`; axe-core in light and dark
test_watcher_cost    a run with and without a watcher
"""
