#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Which units take longest to build: reads Ninja's log. Usage: tools/slowest_units.py BUILD_FOLDER [COUNT]"""
import pathlib
import sys


def main() -> int:
    if len(sys.argv) not in (2, 3) or (len(sys.argv) == 3 and not sys.argv[2].isdigit()):
        print(__doc__, file=sys.stderr)
        return 2
    log = pathlib.Path(sys.argv[1]) / ".ninja_log"
    if not log.is_file():
        print(f"slowest_units.py: there is no {log}; give a folder that Ninja has built in", file=sys.stderr)
        return 1
    seconds = {}  # the last build of each output counts
    for line in log.read_text().splitlines():
        fields = line.split("\t")
        if not line.startswith("#") and len(fields) == 5:
            seconds[fields[3]] = (int(fields[1]) - int(fields[0])) / 1000
    ranked = sorted(seconds.items(), key=lambda item: (-item[1], item[0]))
    for output, duration in ranked[: int(sys.argv[2]) if len(sys.argv) == 3 else 20]:
        print(f"{duration:8.2f} s  {output}")
    print(f"{sum(seconds.values()):8.2f} s  all {len(seconds)} outputs, one after another")
    return 0


if __name__ == "__main__":
    sys.exit(main())
