"""What everything rests on: errors, events, commands, files, random numbers. Python's standard library only."""
