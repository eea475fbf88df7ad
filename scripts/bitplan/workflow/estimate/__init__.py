"""What a model's steps will take on this machine: work counted from description and settings, priced by rates timed on one block."""
