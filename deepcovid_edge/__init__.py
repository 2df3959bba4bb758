"""deepcovid-edge: Deep-COVID networks on an X-ray cart. Research use only; not a medical device."""

__version__ = "0.1.0"
NOTICE = "Research use only. Not a medical device."
