"""The code behind the challenges' scripts: flags, printed lines, exit codes."""
