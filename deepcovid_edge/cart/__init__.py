"""The cart service: an image in by DICOM or folder, assessed exactly once, its answer in the PACS.

Three roles meet only in the ledger and the spool (`store`): `receive` takes images in, `work`
assesses them and sends the results, `page` shows both.
"""
