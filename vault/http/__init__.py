"""What every blueprint shares: problem details, tokens, streams in both directions, cursors, request ids."""
