"""What functional groups state of an only frame, in the place where other images state it.

PS3.3, C.7.6.16: secondary captures of the multi-frame classes state a window, a rescale or the size
of pixels there, once for all frames or for each, and not among the other elements.
"""

from __future__ import annotations

from deepcovid_edge.imaging.dicom.elements import FUNCTIONAL_GROUPS, Elements
from deepcovid_edge.imaging.dicom.geometry import FRAME_SHUTTER_TAGS

_MACROS = {
    0x00289110: (0x00280030,),
    0x00289132: (0x00281050, 0x00281051, 0x00281056, 0x00283010),
    0x00289145: (0x00281052, 0x00281053, 0x00283000),
    0x00209071: (0x00082218, 0x00082228),
    0x00189472: FRAME_SHUTTER_TAGS,
}
"""Pixel measures, frame VOI LUT, pixel value transformation, frame anatomy and frame display
shutter: the sequence, and those of its elements that are read (PS3.3, C.7.6.16.2)."""


def with_only_frame(elements: Elements) -> Elements:
    """The elements of an image of one frame with what its functional groups state.

    What the image states elsewhere comes first, then what is stated of the frame, then what is
    stated of all.
    """
    groups = [item for tag in FUNCTIONAL_GROUPS for item in elements.items(tag)[:1]]
    if not groups:
        return elements
    for macro, tags in _MACROS.items():
        stated = [elements, *(item for group in groups for item in group.items(macro)[:1])]
        first = next((one for one in stated if any(map(one.states, tags))), elements)
        elements = elements.with_those_of(first, tags)
    return elements
