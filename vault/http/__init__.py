"""The Flask kit of every blueprint: problem details, tokens, streams, cursors, request ids."""
