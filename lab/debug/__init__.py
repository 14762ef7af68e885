"""The debugger for simulated runs: go to any event, backwards too; change the run there and see what follows.

A run is simulated in a process of its own (lab.debug.recorder), which forks a copy of itself every so many events. To
go to an event, the latest copy before it is forked again and carries the simulation on to that event. So nothing is
stored but what changed, and every event is a fraction of a second away. A change at an event makes a *branch*: another
such process, with the same past.
"""
