"""Images that are drawn, to try everything without a patient: phantoms and a clinic folder."""
