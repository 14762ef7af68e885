"""The benchmark: measures the chat, and next to it the limits of the machine."""
