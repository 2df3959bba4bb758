"""Images come in: by DICOM C-STORE, and out of watched folders."""
