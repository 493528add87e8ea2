"""What can be judged: one file for each kind of subject."""
