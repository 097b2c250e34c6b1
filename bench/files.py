"""Small-file operations on several directories in interleaved rounds: medians, and ratios to the first directory.

python -m bench.files NAME=DIRECTORY NAME=DIRECTORY ...
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROUNDS = 5
OPERATIONS_PER_ROUND = 40
CONTENT = b"x" * 200


def create(directory: Path, number: int) -> None:
    (directory / f"new-{number}").write_bytes(CONTENT)


def replace(directory: Path, number: int) -> None:
    temporary = directory / "replaced.tmp"
    temporary.write_bytes(CONTENT)
    temporary.replace(directory / "replaced")


def read(directory: Path, number: int) -> None:
    (directory / "read").read_bytes()


def stat(directory: Path, number: int) -> None:
    (directory / "read").stat()


OPERATIONS: dict[str, Callable[[Path, int], None]] = {
    "create+write+close 200 B": create,
    "tmp+rename 200 B": replace,
    "open+read+close 200 B": read,
    "stat": stat,
}


def measure(directories: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Median seconds of each operation in each directory."""
    samples: dict[str, dict[str, list[float]]] = {name: {where: [] for where in directories} for name in OPERATIONS}
    for directory in directories.values():
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "read").write_bytes(CONTENT)
    number = 0
    for _ in range(ROUNDS):
        for name, operation in OPERATIONS.items():
            for where, directory in directories.items():
                for _ in range(OPERATIONS_PER_ROUND):
                    number += 1
                    start = time.perf_counter()
                    operation(directory, number)
                    samples[name][where].append(time.perf_counter() - start)
    for directory in directories.values():
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
    return {name: {where: statistics.median(values) for where, values in row.items()} for name, row in samples.items()}


def main() -> None:
    directories = {name: Path(path) for name, _, path in (argument.partition("=") for argument in sys.argv[1:])}
    first = next(iter(directories))
    print(f"{'':26}" + "".join(f"{where:>24}" for where in directories))
    for name, row in measure(directories).items():
        cells = [f"{seconds * 1e6:9.1f} us {row[first] / seconds:9.2f}x" for seconds in row.values()]
        print(f"{name:26}" + "".join(f"{cell:>24}" for cell in cells))
    print(f"each: median, and how many times slower {first} is; {ROUNDS} interleaved rounds of {OPERATIONS_PER_ROUND}")


if __name__ == "__main__":
    main()
