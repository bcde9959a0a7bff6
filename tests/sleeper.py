"""A child process for tests: says what it sees, or says that it is there and sleeps."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    if sys.argv[1] == "environment":
        mask = os.umask(0)
        print(json.dumps({"environ": dict(os.environ), "path": sys.path, "umask": mask}))
    else:
        Path(sys.argv[1]).touch()
        time.sleep(60)
