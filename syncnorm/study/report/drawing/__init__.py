"""Drawing of figures. Functions import matplotlib themselves, so that importing a study file stays fast."""
