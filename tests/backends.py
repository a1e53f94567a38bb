"""The implementations that every test of the layers runs on."""

BACKENDS = ["reference", "compiled"]
