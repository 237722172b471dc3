"""What the scripts of the challenges call: flags, printed lines, exit codes."""
