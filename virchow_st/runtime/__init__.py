"""What a job needs of the machine."""
