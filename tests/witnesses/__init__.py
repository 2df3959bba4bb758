"""Three witnesses: drawn files are read by us and by two independent readers, and compared.

DICOM files are read by this package, by DCMTK and by pydicom's own pipeline; pictures by this
package, by OpenCV, Pillow and GraphicsMagick. `run` is where it begins.

| module | what it does |
| --- | --- |
| `specs` | draws the parameters of a DICOM file from a seed |
| `encoding` | writes the file, by this package's libraries or by other programs |
| `readers` | the three grey pictures of a file |
| `explained` | the disagreements that are explained: which reader is wrong, by which rule |
| `comparison` | one file's outcome |
| `pictures`, `picture_readers` | the same for picture files |
| `tools` | the programs that write and read |
"""
