"""The command `engine`. Every heavy import waits until a command needs it."""
