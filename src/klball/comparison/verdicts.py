from pathlib import Path
CALIBRATION = Path(__file__).with_name("calibration.json")
LEVEL = 0.05
