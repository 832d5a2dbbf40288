"""A headless Chromium for the scripts beside this file: installed, driven by Playwright, and watched.

Debian's chromium and Playwright (PyPI). Whatever a page asks of another host, and every error on its console, is noted.
"""

import contextlib
import os
import sys
import urllib.parse

from cluster import ROOT, WORK, Failed, check, debian, python_with, say

# Chromium asks its maker for updates and components at every start unless told not to; a name that is looked up all
# the same fails at once.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


def with_playwright():
    """Call it first: Playwright lives in an environment of its own, so the script starts itself again with that Python."""
    debian("chromium", "/usr/bin/chromium")
    debian("fonts-dejavu-core", "/usr/share/fonts/truetype/dejavu")
    python = python_with("browser", "playwright")
    if os.path.realpath(sys.prefix) != os.path.realpath(os.path.dirname(os.path.dirname(python))):
        os.execv(python, [python, os.path.abspath(sys.argv[0]), *sys.argv[1:]])
    os.makedirs(WORK, exist_ok=True)


class Browser:
    """Pages, and what they did: `asked` are the URLs of all requests, `problems` the errors of their consoles.

    Chromium calls each answer of 400 or more an error of the page that asked; for paths that begin with `refusing` a
    script expects such answers.
    """

    def __init__(self, chromium, refusing):
        self.chromium, self.refusing, self.asked, self.problems = chromium, refusing, [], []

    def page(self, **options):
        """A page in a context of its own; the words are Playwright's for a context."""
        context = self.chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.on("request", lambda request: self.asked.append(request.url))
        page = context.new_page()
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self.note)
        return page

    def note(self, message):
        refused = "the server responded with a status of 4" in message.text
        path = urllib.parse.urlsplit(message.location.get("url", "")).path
        if message.type == "error" and not (refused and self.refusing and path.startswith(self.refusing)):
            self.problems.append(f"{message.text} ({path})")

    def check_quiet(self, *origins):
        """No request left for anywhere but these, and no page complained."""
        homes = tuple(origin + "/" for origin in origins) + ("data:", "blob:")
        away = [url for url in self.asked if not url.startswith(homes)]
        check(self.asked and not away, f"of {len(self.asked)} requests none left for elsewhere {away or ''}".rstrip())
        check(not self.problems, f"no error on a page's console {self.problems or ''}".rstrip())


@contextlib.contextmanager
def browsing(refusing=None):
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", headless=True, args=FLAGS)
        try:
            yield Browser(chromium, refusing)
        except (Error, AssertionError) as problem:  # Playwright's own errors are many lines; they say what was not found.
            raise Failed(f"{type(problem).__name__}: {problem}") from None
        finally:
            chromium.close()


def screenshot(page, name, **options):
    """Saves what the page shows under target/scripts/; returns the path."""
    picture = os.path.join(WORK, name)
    page.screenshot(path=picture, **options)
    say(f"      screenshot: {os.path.relpath(picture, ROOT)}")
    return picture
