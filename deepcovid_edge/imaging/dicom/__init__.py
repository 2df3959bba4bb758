"""DICOM radiographs to a `Radiograph`, or the reason why not.

The order of operations (DICOM PS3.4, annex N.2; PS3.3, C.7.6.3, C.11.1 and C.11.2):

    eligibility check -> decode -> modality LUT -> VOI LUT or window -> MONOCHROME1 inverted
    -> padding black

The eligibility check looks at the header alone, before a pixel is touched. All steps behind
decoding are one table with an entry for each word that a pixel can be; see `grey_levels`.

The VOI (the first LUT, else the first window) is always applied. The shipped models learned from
pictures that were exported as they were displayed, so a DICOM file read this way equals the PNG of
the same image; there is nothing for a model's manifest to choose.

`reader` is where it begins. pydicom is imported when the first DICOM file is met. Compressed pixels
are decoded in a child process of limited time and memory; see `sandbox`.
"""
