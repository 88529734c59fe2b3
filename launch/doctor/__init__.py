"""`transfer doctor`: checks of a machine or cluster before a study is run on it."""
