"""The browser for tests of the page: an installed Chromium or Chrome, or else Playwright's.

`python -m tests.browser` finds a browser or installs one. `make test` runs it on a fresh machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

from playwright.sync_api import Error, sync_playwright

# The headless shell, Playwright's own choice, needs half of the processor time.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def executable():
    """The path of an installed browser; None makes Playwright use the one that it installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def browser():
    """A headless browser."""
    # Chromium's sandbox does not work as root, which most containers use. The tests open only our own pages.
    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable(), args=arguments, timeout=180_000)
        yield running
        running.close()


def works():
    """Whether a browser starts."""
    try:
        with browser():
            return True
    except Error as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        return False


def install():
    """Install Debian's headless Chromium if apt-get can be used, else Playwright's."""
    if shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "-qq"], check=False)
        command = [
            "apt-get",
            "install",
            "-y",
            "-qq",
            "--no-install-recommends",
            "chromium-headless-shell",
            "fonts-noto-core",
        ]
        if not subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
            return
    subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=False)


def main():
    if works():
        return
    print("The tests of the page need Chromium; installing it.", file=sys.stderr)
    install()
    if not works():
        sys.exit(
            "No Chromium or Chrome could be started or installed, and the tests of the page need one. Install Chromium "
            "with your system's packages (Debian: apt-get install chromium-headless-shell), or run "
            f"{sys.executable} -m playwright install --with-deps chromium. Then run make test again."
        )


if __name__ == "__main__":
    main()
