"""W1 to W8, and the same by face and by growth: what each offers, for how long, and which figures come of it."""
