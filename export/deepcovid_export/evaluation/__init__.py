"""Accuracy of a model on a labelled data set."""
