"""Image files as pixels: limits, formats, and the reason why a file cannot be used."""
