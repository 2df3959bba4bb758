"""An archive: the speed of `screen` beside `infer`, its memory, faults, and a plan on paper."""
