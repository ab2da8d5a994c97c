"""Many processes as one run: finding each other, agreeing, stopping and failing together."""
