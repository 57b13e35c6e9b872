"""What the data file holds: its layout, quantization choices and calibration, and the writing of it."""
