"""What a train step needs and takes, from the compiled program."""
