"""From files (or numbers) to batches of slices. Nothing here imports jax: grain's workers must not start a backend."""
