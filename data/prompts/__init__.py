"""From a problem to the text and token ids that a model continues, and the end of a completion.

Training, evaluation and servers render here alone, so that every model sees the same ids. Changing a byte of what is
rendered makes a study's stages run again.
"""
