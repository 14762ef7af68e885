"""What runs inside of a real node's process: a disk and a clock that obey orders."""
