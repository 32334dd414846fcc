"""What a job needs of the machine: devices, memory, other processes, files, progress, Ctrl-C."""
