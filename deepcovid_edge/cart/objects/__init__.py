"""DICOM objects of a result: a structured report for machines, a secondary capture for eyes."""
