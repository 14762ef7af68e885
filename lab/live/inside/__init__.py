"""The part of the lab that runs inside a real node's process: a disk and a clock controlled by orders."""
