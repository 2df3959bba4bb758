"""The cart service: a film in by DICOM or folder, judged exactly once, its answer in the PACS.

Three roles meet only in the ledger and the spool (`store`): `receive` takes films in, `work`
judges them and sends the results, `page` shows both.
"""
