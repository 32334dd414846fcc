"""The rate field of a slide whose counts were measured: its counts without their Poisson noise."""
