"""How fast the chat is, and how fast this machine lets anything be: measured side by side, told in one table."""
