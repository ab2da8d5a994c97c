"""Pictures of weights and plots of numbers."""
