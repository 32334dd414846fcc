"""Services for every job: devices, memory, processes, files, locks, progress and Ctrl-C."""
