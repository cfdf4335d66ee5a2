"""What runs from a checkout, to be read and tried."""
