"""One command, one answer: the same extraction again and again, half of the times killed and resumed, on busy cores.

    python scripts/check_repeat.py SOURCE -b mobilenet_v2 [--weights FILE] [--trials 30] [--seed 0]

Each trial runs the real command in a process of its own, to a new file; every second one is killed (SIGKILL) at a
moment drawn at random from the time that the last whole run took, and run again; every third one finds no compiled
model. Beside them a process for each core keeps all of them busy, in bursts, so that no two trials see the same load.
Prints how many different keys and features (SHA-256 of the bytes) came out; exits with 1 where that is not one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from precompute import open_cache

BUSY = """
import random, time
while True:
    end = time.monotonic() + random.uniform(0.1, 3)
    while time.monotonic() < end:
        sum(range(10000))
    time.sleep(random.uniform(0, 0.3))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("-b", "--backbone", default="mobilenet_v2")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(os.cpu_count() or 1)]
    try:
        with tempfile.TemporaryDirectory() as place:
            answers = run_trials(options, Path(place))
    finally:
        for process in busy:
            process.kill()
            process.wait()
    for (key, features, settings), count in answers.most_common():
        print(f"{count:3} times: {settings}, key {key[:12]}, features {features[:12]}")
    print(f"{options.backbone}: {options.trials} trials, {len(answers)} answer{'s' if len(answers) > 1 else ''}")
    return 0 if len(answers) == 1 else 1


def run_trials(options: argparse.Namespace, place: Path) -> Counter[tuple[str, str, str]]:
    """How often each (key, SHA-256 of the features, settings) came out."""
    generator = random.Random(options.seed)
    answers: Counter[tuple[str, str, str]] = Counter()
    lasted, killed = 0.0, 0
    for trial in range(options.trials):
        out = place / f"{trial}.h5"
        models = place / ("models" if trial % 3 else f"models{trial}")
        command = [sys.executable, "-m", "precompute", "extract", options.source, "-b", options.backbone]
        command += ["--weights", options.weights, "-o", out]
        environment = {**os.environ, "XDG_CACHE_HOME": str(models)}
        if trial % 2:
            while not run_and_kill(command, environment, generator.uniform(0, lasted)):
                os.unlink(out)  # it was done before
            killed += 1
        began = time.monotonic()
        subprocess.run(command, env=environment, check=True, capture_output=True)
        if not trial % 2:
            lasted = time.monotonic() - began
        cache = open_cache(out)
        features = hashlib.sha256(cache.features().tobytes()).hexdigest()
        last = cache.last_run
        answers[cache.key, features, f"{last['engine']} {last['precision']}"] += 1
        print(f"trial {trial}: {last['precision']}, {features[:12]}", file=sys.stderr, flush=True)
        os.unlink(out)
        if models.name != "models":
            shutil.rmtree(models, ignore_errors=True)
    print(f"{killed} of {options.trials} were killed before they were done, and run again")
    return answers


def run_and_kill(command: Sequence[object], environment: dict[str, str], after: float) -> bool:
    """Start the command and kill it `after` so many seconds; False where it had ended by then."""
    process = subprocess.Popen(
        [str(part) for part in command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(after)
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True


if __name__ == "__main__":
    sys.exit(main())
