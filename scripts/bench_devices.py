"""Time and bytes of a calibration over 1, 2, 4 and 8 virtual CPU devices: `calibrate.py` once for each.

    python scripts/bench_devices.py digits --recipe uniform_groups --steps 10 --calibration-images 64 --batch-size 64

Takes the arguments of `calibrate.py`, but for --out, and prints its JSON lines. Virtual devices share the machine's
cores: bytes for each device fall with their number, time does not.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

CALIBRATE = Path(__file__).with_name("calibrate.py")


def main(argv: list[str]) -> None:
    """Run and print."""
    for devices in (1, 2, 4, 8):
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(CALIBRATE), *argv, "--out", f"{folder}/quantized"]
            subprocess.run(command, env={**os.environ, "XLA_FLAGS": flags}, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
