"""Object storage: images read by byte range, results uploaded so that they are whole or absent."""
