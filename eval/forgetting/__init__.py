"""What every checkpoint of a run gained and lost: the trajectory stage, curves at equal gain, and their figures."""
